"""What makes a case finished, and what is kept of it."""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from monai_ext.data.case_details import CaseDetails
from monai_ext.errors import UserError
from monai_ext.evaluation.case_record import table_rows
from monai_ext.files import atomic_path
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.prompt_table import PromptTable

NAMES = ("a_1", "a_2", "b_1")


@pytest.fixture
def cases(tmp_path) -> list[dict[str, Any]]:
    found = []
    for name in NAMES:
        image = tmp_path / f"{name}.png"
        image.write_text(name)
        found.append({"case": name, "patient": name[0], "image": str(image), "reference_image": [str(image)]})
    return found


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def run(out: Path, cases: list[dict[str, Any]], settings=None, fail_at: str = "", **options: Any) -> list[str]:
    """Write a mask and two rows for each case that is left; return the names of these."""
    finished = FinishedCases(out, cases, settings or {"n": 1}, **options)

    def segment(engine: Engine, case: dict[str, Any]) -> None:
        if case["case"] == fail_at:
            raise KeyError("killed")
        with atomic_path(out / "masks" / f"{case['case']}.png") as path:
            path.write_text(f"mask of {case['case']} {torch.rand(1)} {np.random.rand()} {random.random()}")
        record = finished.record(case["case"])
        record.add_file(out, out / "masks" / f"{case['case']}.png")
        record.add_rows("t.csv", ["case", "value"], [[case["case"], 1 / 3], [case["case"], None]])

    engine = Engine(segment)
    finished.attach(engine)
    own = finished.own()
    if own:
        engine.run(own, max_epochs=1)
    return [case["case"] for case in own]


def test_finished_cases_are_left_out(out, cases):
    assert run(out, cases) == list(NAMES)
    assert run(out, cases) == []


def test_only_the_case_that_failed_and_those_after_it_are_left(out, cases):
    with pytest.raises(KeyError):
        run(out, cases, fail_at="a_2")
    assert run(out, cases) == ["a_2", "b_1"]


def test_cases_of_another_run_in_the_folder_are_told(out, cases, capfd):
    run(out, cases)
    assert "does not have" not in capfd.readouterr().err
    run(out, cases[:1], {"n": 2})
    assert "holds the files of 2 cases that this run does not have (a_2, b_1)" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["image", "reference_image"])
def test_a_changed_file_makes_its_case_anew(out, cases, tmp_path, name):
    run(out, cases)
    (tmp_path / "other.png").write_text("a_2")
    cases[1][name] = str(tmp_path / "other.png") if name == "image" else [str(tmp_path / "other.png")]
    assert run(out, cases) == [], "the same content at another place"
    (tmp_path / "other.png").write_text("something else")
    assert run(out, cases) == ["a_2"]


def test_changed_settings_make_all_anew(out, cases):
    run(out, cases, {"n": 1, "weights": "x"})
    assert run(out, cases, {"weights": "x", "n": 1}) == []
    assert run(out, cases, {"weights": "y", "n": 1}) == list(NAMES)


def test_a_further_entry_of_a_case_counts(out, cases):
    run(out, cases)
    cases[2]["oracle_slices"] = [1, 2]
    assert run(out, cases) == ["b_1"]


@pytest.mark.parametrize("spoil", ["delete", "alter", "record", "half record", "other record"])
def test_what_is_not_as_it_was_is_made_anew(out, cases, spoil):
    run(out, cases)
    mask, record = out / "masks" / "a_2.png", out / "cases" / "a_2.json"
    before = record.read_bytes(), mask.read_bytes()
    if spoil == "delete":
        mask.unlink()
    elif spoil == "alter":
        mask.write_text("by hand")
    elif spoil == "record":
        record.unlink()
    elif spoil == "half record":
        record.write_bytes(before[0][: len(before[0]) // 2])
    else:
        record.write_bytes((out / "cases" / "a_1.json").read_bytes())
    assert run(out, cases) == ["a_2"]
    assert (record.read_bytes(), mask.read_bytes()) == before


def test_a_result_does_not_depend_on_the_cases_before_it(out, cases, tmp_path):
    run(out, cases)
    run(tmp_path / "alone", cases[2:])
    assert (out / "masks" / "b_1.png").read_bytes() == (tmp_path / "alone" / "masks" / "b_1.png").read_bytes()
    run(tmp_path / "seeded", cases[2:], seed=1)
    assert (out / "masks" / "b_1.png").read_bytes() != (tmp_path / "seeded" / "masks" / "b_1.png").read_bytes()


def test_rows_come_in_the_order_of_the_list_and_exactly(out, cases):
    run(out, cases[2:])
    run(out, cases)
    records = FinishedCases(out, cases, {"n": 1}).records()
    expected = [[name, value] for name in NAMES for value in (1 / 3, None)]
    assert list(table_rows(records, "t.csv")) == expected


@pytest.mark.parametrize("name", ["masks", "uncertainty", "supports"])
def test_half_written_files_of_a_killed_run_are_removed(out, cases, name):
    folder = out / name
    with atomic_path(folder / "a_1.nii.gz") as path:
        path.write_text("half")
        (folder / "left").write_text("half")
    (folder / "left").rename(path)
    (folder / "a_1.nii.gz").rename(folder / ".mine")
    FinishedCases(out, cases, {})
    assert [path.name for path in folder.iterdir()] == [".mine"]


def test_a_patients_cases_stay_in_one_shard_which_tells_what_the_whole_is(out, cases):
    parts = [FinishedCases(out / str(index), cases, {}, shard=f"{index}/2") for index in range(2)]
    assert sorted(case["case"] for part in parts for case in part.cases) == list(NAMES)
    for index, part in enumerate(parts):
        engine = Engine(lambda engine, case: None)
        part.attach(engine)
        engine.fire_event(Events.COMPLETED)
        told = json.loads((out / str(index) / "shard.json").read_text())
        assert told["list"] == list(NAMES)
        assert list(told["cases"]) == [case["case"] for case in part.cases]


def test_a_file_that_cannot_be_read_is_named(out, cases, tmp_path):
    cases[0]["image"] = str(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        FinishedCases(out, cases, {}).own()
    with pytest.raises(UserError, match="--shard 2/2"):
        FinishedCases(out, cases, {}, shard="2/2")


def test_files_of_kept_cases_are_told(out, cases):
    run(out, cases[:1])
    kept = FinishedCases(out, cases, {"n": 1}).kept()
    assert kept == [out / "masks" / "a_1.png", out / "cases" / "a_1.json"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_cases(out, tmp_path):
    """Neither tensors nor rows are left of the cases that are done."""
    image = tmp_path / "image.png"
    image.write_text("x")
    cases = [{"case": f"c{n:02d}", "image": str(image)} for n in range(40)]
    finished = FinishedCases(out, cases, {})

    def segment(engine: Engine, case: dict[str, Any]) -> list[dict[str, Any]]:
        rows = [{"label": "x", "slice": n, "points": [[1.0, 2.0, 1.0]]} for n in range(20)]
        engine.state.batch = [{**case, "tensor": torch.rand(10)}]
        return [{"pred": torch.rand(10), "details": CaseDetails(rows)}]

    seen = []
    engine = Engine(segment)
    PromptTable(out, finished).attach(engine)
    finished.attach(engine)

    @engine.on(Events.ITERATION_COMPLETED)
    def count(engine: Engine) -> None:
        if engine.state.iteration in (5, 40):
            gc.collect()
            objects = gc.get_objects()
            tensors = sum(isinstance(one, torch.Tensor) for one in objects)
            rows = sum(isinstance(one, dict) and "points" in one for one in objects)
            seen.append((tensors, rows, len(finished._open)))

    engine.run(finished.own(), max_epochs=1)
    assert seen[0] == seen[1]
    assert len((out / "prompts.csv").read_text().splitlines()) == 1 + 40 * 20
