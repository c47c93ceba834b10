from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from monai_ext.data.cards import card_names
from monai_ext.data.indexing.__main__ import main, parse_labels
from monai_ext.data.manifest import load_datalist
from monai_ext.errors import UserError


@pytest.fixture
def tree(tmp_path: Path, shapes: Any) -> Path:
    root = tmp_path / "data" / "mine"
    shapes.save_volume(root / "images" / "a.nii.gz")
    shapes.save_volume(root / "labels" / "a.nii.gz", shapes.rings((1,)))
    return root


def test_the_command_writes_a_list_that_loads(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tree.parent / "mine.json"
    main(["folder", str(tree), "-o", str(output), "--labels", "liver=1", "--modality", "CT"])
    datalist = load_datalist(output)
    assert (datalist.labels, datalist.modality) == ({"liver": 1}, "CT")
    assert f"written to {output}" in capsys.readouterr().out


@pytest.mark.parametrize("name", card_names())
def test_every_card_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name, "--card"])
    shown = capsys.readouterr().out
    assert "licence: " in shown
    assert "how to get it: " in shown


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adcd", ".", "-o", "l.json"], "'adcd' is no data set that can be indexed; choose one of: .*acdc"),
        (["acdc", "no such folder", "-o", "l.json"], "there is no such folder"),
        (["acdc", "."], "say where the data lies"),
        (["folder", ".", "-o", "l.txt"], "ends in .json"),
        (["acdc", ".", "-o", "l.json", "--labels", "LV=3"], "--labels does not apply to acdc"),
        (["bids", ".", "-o", "l.json", "--gates", "0"], "--gates does not apply to bids"),
        (["folder", ".", "-o", "l.json", "--patient_pattern", "("], "is no regular expression"),
    ],
)
def test_mistakes_are_sentences(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)


@pytest.mark.parametrize("pair", ["tumour", "=1", "tumour=0", "tumour=-1", "tumour=x"])
def test_labels_are_name_and_value(pair: str) -> None:
    with pytest.raises(UserError, match="is not NAME=VALUE"):
        parse_labels([pair])


def test_a_label_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="given twice"):
        parse_labels(["a=1", "a=2"])


def test_a_mistake_is_the_last_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as mistake:
        main(["acdc", str(tmp_path), "-o", str(tmp_path / "l.json")])
    sys.excepthook(mistake.type, mistake.value, mistake.tb)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path}: nothing there looks like ACDC")
