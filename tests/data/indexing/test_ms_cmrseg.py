from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.images import read_label

VALUES = (600, 200, 500)


@pytest.fixture
def tree(tmp_path: Path, shapes: Any) -> Path:
    """Patients 2 and 40 of the challenge's archive: three sequences each, labels of 2 alone."""
    root = tmp_path / "C0LET2_nii45_for_challenge19"
    for patient in (2, 40):
        for sequence in ("C0", "T2", "LGE"):
            shapes.save_volume(root / "c0t2lge" / f"patient{patient}_{sequence}.nii.gz")
    for sequence, folder in (("C0", "c0gt"), ("LGE", "lgegt")):
        shapes.save_volume(root / folder / f"patient2_{sequence}_manual.nii.gz", shapes.rings(VALUES))
    return root


def test_labels_keep_their_values(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    datalist, report = indexed("ms_cmrseg", tree)
    assert datalist.labels == {"MYO": 200, "LV": 500, "RV": 600}
    labelled = [case for case in datalist.cases if case.label is not None]
    assert [(case.case, case.fold, case.extra["sequence"]) for case in labelled] == [
        ("patient2_C0", 0, "C0"),
        ("patient2_LGE", 0, "LGE"),
    ]
    assert np.array_equal(read_label(labelled[0].label), shapes.rings(VALUES))
    assert "6 cases, 2 patients" in report
    assert "MYO 2, LV 2, RV 2" in report


def test_one_sequence_can_be_taken(tree: Path, indexed: Callable[..., Any]) -> None:
    datalist, report = indexed("ms_cmrseg", tree, image_pattern=re.compile("_C0"))
    assert [case.case for case in datalist.cases] == ["patient2_C0", "patient40_C0"]
    assert "left out by --image_pattern" in report


def test_mapped_copies_are_named(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_volume(tree / "c0gt" / "patient2_C0_manual.nii.gz", shapes.rings((1, 2, 3)))
    assert "holds the value 1, 2, 3, which neither 'labels' nor 'ignore' names" in indexed("ms_cmrseg", tree)[1]
