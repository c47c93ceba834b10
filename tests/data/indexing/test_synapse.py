from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.images import read_label


@pytest.fixture
def tree(tmp_path: Path, shapes: Any) -> Path:
    """RawData with the 30 labelled scans and one test scan."""
    root = tmp_path / "RawData"
    for number in (*range(1, 11), *range(21, 41)):
        shapes.save_volume(root / "Training" / "img" / f"img{number:04d}.nii.gz")
        shapes.save_volume(root / "Training" / "label" / f"label{number:04d}.nii.gz", shapes.rings((6, 13)))
    shapes.save_volume(root / "Testing" / "img" / "img0061.nii.gz")
    return root


def test_thirty_scans_make_five_folds(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    datalist, report = indexed("synapse", tree)
    folds = [case.fold for case in datalist.cases if case.label is not None]
    assert folds == [k for k in range(5) for _ in range(6)]
    assert (datalist.cases[-1].case, datalist.cases[-1].fold, datalist.modality) == ("img0061", None, "CT")
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((6, 13)))
    assert "liver 30" in report
    assert "spleen 0" in report


def test_an_incomplete_download_has_no_folds_and_says_so(tree: Path, indexed: Callable[..., Any]) -> None:
    (tree / "Training" / "img" / "img0005.nii.gz").unlink()
    datalist, report = indexed("synapse", tree)
    assert {case.fold for case in datalist.cases} == {None}
    assert "no folds: they are made of all 30 labelled scans, 29 are here" in report
    assert "label0005: has no image" in report
