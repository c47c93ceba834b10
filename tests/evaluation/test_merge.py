"""Merging shards: what is refused, in one sentence. That the bytes are those of the whole: test_p2sam_parallel.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from monai_ext.data.shards import shard_of
from monai_ext.errors import UserError
from monai_ext.evaluation.case_metrics import VoxelCounts
from monai_ext.evaluation.case_record import CaseRecord, add_metrics
from monai_ext.evaluation.merge import main, merge
from monai_ext.evaluation.record import write_record
from monai_ext.evaluation.table import Row, read_rows

CASES = ["c", "a", "b", "d", "e"]


def write_shard(folder: Path, index: int, count: int = 2, cases=CASES, mean_of="case", **settings) -> Path:
    own = [case for case in cases if shard_of(case, count) == index]
    for case in own:
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        (folder / "masks" / f"{case}.png").write_text(f"mask of {case}")
        record = CaseRecord(case, key=f"key of {case}")
        row = Row("toy", "p2sam", case, case, "", "", "", "0", "LV", "dice", 0.5, "ok")
        add_metrics(record, [row], {"LV": VoxelCounts(1, 1, 1, 1)})
        record.add_rows("prompts.csv", ["case", "n"], [[case, 1], [case, 2]])
        record.add_file(folder, folder / "masks" / f"{case}.png")
        record.write(folder)
    folder.mkdir(exist_ok=True)
    content = {
        "shard": f"{index}/{count}",
        "list": list(cases),
        "cases": {case: f"key of {case}" for case in own},
        "settings": {"weights": "w", "config": {"seed": 0}, **settings},
        "summary": {"seed": 0, "mean_of": mean_of},
    }
    (folder / "shard.json").write_text(json.dumps(content))
    write_record(folder, shard=f"{index}/{count}")
    return folder


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    return [write_shard(tmp_path / f"shard-{index}-of-2", index) for index in range(2)]


def refused(folders: list[Path], out: Path) -> str:
    with pytest.raises(UserError) as error:
        merge(folders, out)
    assert "\n" not in str(error.value)
    assert not out.exists(), "nothing is written before everything has been checked"
    return str(error.value)


@pytest.mark.parametrize("order", [1, -1])
def test_the_whole_is_in_the_order_of_the_list(shards, tmp_path, capsys, order):
    merge(shards[::order], tmp_path / "out")
    assert [row.case for row in read_rows(tmp_path / "out" / "metrics.csv")] == CASES
    lines = (tmp_path / "out" / "prompts.csv").read_text().splitlines()
    assert lines == ["case,n", *(f"{case},{n}" for case in CASES for n in (1, 2))]
    assert {path.name for path in (tmp_path / "out" / "masks").iterdir()} == {f"{case}.png" for case in CASES}
    assert "5 cases" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {part["shard"] for part in record["shards"]} == {"0/2", "1/2"}
    assert len(record["outputs"]) == len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) - 1


def test_the_folder_that_holds_the_shards_will_do_and_may_take_the_outputs(shards, tmp_path):
    merge([tmp_path], tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
    assert tmp_path / "metrics.csv" in first
    merge([tmp_path], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.csv")} == first
    outputs = json.loads((tmp_path / "run.json").read_text())["outputs"]
    assert not [entry["path"] for entry in outputs if entry["path"].startswith("shard-")]


def test_a_missing_shard_is_named(shards, tmp_path):
    assert refused(shards[:1], tmp_path / "out").startswith("shard 1/2 is missing")


def test_a_shard_twice_is_named(shards, tmp_path):
    shutil.copytree(shards[0], tmp_path / "copy")
    assert "are both shard 0/2" in refused([*shards, tmp_path / "copy"], tmp_path / "out")


def test_an_unfinished_shard_is_named(shards, tmp_path):
    (shards[1] / "shard.json").unlink()
    assert f"{shards[1]} is no finished shard" in refused(shards, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "x"}, 'weights is "w" in one and "x" in the other'),
        ({"config": {"seed": 1}}, "seed is 0 in one and 1 in the other"),
        ({"cases": [*CASES, "f"]}, "list of cases is"),
        ({"cases": CASES[::-1]}, "list of cases#0 is"),
        ({"mean_of": "patient"}, 'mean_of is "case" in one and "patient" in the other'),
        ({"count": 3}, "number of shards is 2 in one and 3 in the other"),
    ],
)
def test_shards_of_another_evaluation_are_refused(shards, tmp_path, change, words):
    other = write_shard(tmp_path / "other", 1, **change)
    sentence = refused([shards[0], other], tmp_path / "out")
    assert "are not parts of one evaluation" in sentence
    assert words in sentence


@pytest.mark.parametrize("spoil", ["mask", "altered mask", "record", "other record", "file of the shard", "run.json"])
def test_what_is_not_as_it_was_is_named(shards, tmp_path, spoil):
    case = next(case for case in CASES if shard_of(case, 2) == 1)
    if spoil == "mask":
        (shards[1] / "masks" / f"{case}.png").unlink()
    elif spoil == "altered mask":
        (shards[1] / "masks" / f"{case}.png").write_text("by hand")
    elif spoil == "record":
        (shards[1] / "cases" / f"{case}.json").unlink()
    elif spoil == "other record":
        CaseRecord(case, key="of another run").write(shards[1])
    elif spoil == "run.json":
        (shards[1] / "run.json").unlink()
    else:
        (shards[1] / "shard.json").write_text("{")
    sentence = refused(shards, tmp_path / "out")
    assert str(shards[1]) in sentence
    if "mask" in spoil or spoil.endswith("record"):
        assert f"case {case!r} of shard 1/2" in sentence


def test_the_command(shards, tmp_path):
    main([*map(str, shards), "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "summary.json").exists()
