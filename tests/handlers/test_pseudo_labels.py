"""Tests of monai_ext.handlers.pseudo_labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from skimage.io import imread

from monai_ext.data.pseudo_labels import PseudoLabels
from monai_ext.data.slice_store import StoredCase
from monai_ext.handlers.pseudo_labels import TABLE, PseudoLabelDice, PseudoLabelOverlays
from tests.stored_cases import stored_case

LABELS = {"disc": 5, "ring": 7}


def case(folder: Path, name: str = "a", has_label: bool = True) -> StoredCase:
    """Two slices of 16 x 12 pixels; class 1 in rows 0-3, class 2 nowhere."""
    label = np.zeros((2, 16, 12), np.uint8)
    label[:, :4] = 1
    masks = {"label": label} if has_label else {}
    return stored_case(folder, np.full((2, 16, 12), 90, np.uint8), name, **masks)


def found(rows: int = 4) -> PseudoLabels:
    labels = np.zeros((2, 16, 12), np.uint8)
    labels[:, 2 : 2 + rows] = 1
    return PseudoLabels(labels, 0, 0, [{"label": "disc", "slice": 0, "points": [[3.0, 3.0, 1.0], [9.0, 9.0, 0.0]]}])


def rows(folder: Path) -> list[tuple[str, str, str]]:
    with open(folder / TABLE, newline="") as file:
        return [(row["case"], row["label"], row["dice"]) for row in csv.DictReader(file)]


def test_dice_of_each_case_and_label_empty_where_both_are(tmp_path) -> None:
    PseudoLabelDice(LABELS)(tmp_path, case(tmp_path), found())
    assert rows(tmp_path) == [("a", "disc", "0.500000"), ("a", "ring", "")]


def test_rows_of_a_case_replace_those_of_an_earlier_start(tmp_path) -> None:
    measure = PseudoLabelDice(LABELS)
    measure(tmp_path, case(tmp_path, "b"), found())
    measure(tmp_path, case(tmp_path, "a"), found())
    measure(tmp_path, case(tmp_path, "b"), found(rows=2))
    assert [(name, value) for name, label, value in rows(tmp_path) if label == "disc"] == [
        ("a", "0.500000"),
        ("b", f"{2 * 2 / 6:.6f}"),
    ]


def test_without_a_dense_label_nothing_is_measured_but_a_picture_is_drawn(tmp_path) -> None:
    PseudoLabelDice(LABELS)(tmp_path, case(tmp_path, has_label=False), found())
    assert not (tmp_path / TABLE).exists()
    PseudoLabelOverlays(LABELS)(tmp_path, case(tmp_path, has_label=False), found())
    assert (tmp_path / "overlays" / "a.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["mask", "points"])
def test_the_picture_shows_the_masks_and_the_points(tmp_path, change: str) -> None:
    one = found()
    other = found(rows=9) if change == "mask" else PseudoLabels(one.labels, 0, 0, [])
    pictures = []
    for k, labels in enumerate((one, other, one)):
        folder = tmp_path / str(k) / "round_0"
        folder.mkdir(parents=True)
        PseudoLabelOverlays(LABELS)(folder, case(tmp_path), labels)
        pictures.append(imread(folder / "overlays" / "a.png"))
    assert (pictures[0] == pictures[2]).all()
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()
