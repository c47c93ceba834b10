from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.images import read_geometry, read_image, read_label
from monai_ext.errors import UserError

VALUES = (1, 2, 3)


@pytest.fixture
def tree(tmp_path: Path, shapes: Any) -> Path:
    """patient001 and 021 (training) and 101 (testing, no labels), as the official archive has them."""
    root = tmp_path / "ACDC" / "database"
    for part, patient, end_systole in (("training", 1, 12), ("training", 21, 9), ("testing", 101, 14)):
        name = f"patient{patient:03d}"
        folder = root / part / name
        for frame, shift in ((1, 0.0), (end_systole, 1.0)):
            shapes.save_volume(folder / f"{name}_frame{frame:02d}.nii.gz")
            if part == "training":
                label = shapes.rings(VALUES, shift)
                shapes.save_volume(folder / f"{name}_frame{frame:02d}_gt.nii.gz", label)
        shapes.save_volume(folder / f"{name}_4d.nii.gz", np.ones((*shapes.SHAPE, 2), np.int16))
        info = f"ED: 1\nES: {end_systole}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        (folder / "Info.cfg").write_text(info)
    return root.parent


def test_phases_are_visits_with_group_split_and_fold(tree: Path, indexed: Callable[..., Any]) -> None:
    datalist, report = indexed("acdc", tree)
    cases = {case.case: case for case in datalist.cases}
    assert sorted(cases) == [
        *("patient001_frame01", "patient001_frame12", "patient021_frame01", "patient021_frame09"),
        *("patient101_frame01", "patient101_frame14"),
    ]
    systole = cases["patient021_frame09"]
    assert (systole.patient, systole.visit, systole.split, systole.fold) == ("patient021", 1, "train", 1)
    assert systole.extra == {"phase": "ES", "frame": 9, "group": "DCM"}
    assert (cases["patient101_frame01"].split, cases["patient101_frame01"].fold) == ("test", None)
    assert datalist.dataset == "ACDC"
    assert "6 cases, 3 patients" in report
    assert "skipped: nothing" in report


def test_every_mask_is_the_shape_that_was_drawn(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    datalist, _ = indexed("acdc", tree)
    labelled = [case for case in datalist.cases if case.label is not None]
    assert len(labelled) == 4
    for case in labelled:
        assert np.array_equal(read_label(case.label), shapes.rings(VALUES, float(case.visit)))
        assert np.allclose(read_geometry(case.label).affine, shapes.oblique(), atol=1e-4)


def test_a_test_patient_without_a_label_is_kept(tree: Path, indexed: Callable[..., Any]) -> None:
    datalist, report = indexed("acdc", tree)
    assert [case.label for case in datalist.cases if case.split == "test"] == [None, None]
    assert "with a label map: 4" in report


def test_weight_and_height_stay_where_they_are(tree: Path, tmp_path: Path, indexed: Callable[..., Any]) -> None:
    indexed("acdc", tree)
    assert "184" not in (tmp_path / "list.json").read_text()


def test_scribbles_bring_the_ignore_value(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    assert indexed("acdc", tree)[0].ignore is None
    scribble = np.full(shapes.SHAPE, 4, np.int16)
    scribble[5, 5:8, 2] = 2
    shapes.save_volume(tree / "scribbles" / "patient001" / "patient001_frame01_scribble.nii.gz", scribble)
    datalist, report = indexed("acdc", tree)
    assert datalist.ignore == 4
    assert np.array_equal(read_label(datalist.cases[0].scribble), scribble)
    assert "with scribbles: 1" in report


def test_a_missing_frame_is_cut_from_the_cine(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    folder = tree / "database" / "training" / "patient001"
    (folder / "patient001_frame12.nii.gz").unlink()
    cine = np.random.default_rng(0).integers(0, 900, (*shapes.SHAPE, 15)).astype(np.int16)
    shapes.save_volume(folder / "patient001_4d.nii.gz", cine)
    datalist, _ = indexed("acdc", tree)
    case = next(case for case in datalist.cases if case.case == "patient001_frame12")
    assert Path(case.image).parent.name == "list_files"
    assert np.array_equal(read_image(case.image), cine[..., 11])
    assert np.allclose(read_geometry(case.image).affine, shapes.oblique(), atol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "Info.cfg").unlink(), r"patient001: .*Info\.cfg: cannot be read"),
        (lambda f: (f / "Info.cfg").write_text("ED: one\nES: 12"), r"Info\.cfg: ED is 'one'"),
        (lambda f: (f / "patient001_frame12.nii.gz").unlink(), r"patient001_4d\.nii\.gz: has no frame 12"),
    ],
)
def test_what_cannot_be_used_is_skipped_with_its_reason(
    tree: Path, indexed: Callable[..., Any], spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(tree / "database" / "training" / "patient001")
    datalist, report = indexed("acdc", tree)
    assert {case.patient for case in datalist.cases} == {"patient021", "patient101"}
    assert re.search(reason, report)


def test_a_label_on_another_grid_is_skipped(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    path = tree / "database" / "training" / "patient001" / "patient001_frame01_gt.nii.gz"
    shapes.save_volume(path, np.zeros((5, 5, 5), np.int16))
    datalist, report = indexed("acdc", tree)
    assert "patient001_frame01" not in {case.case for case in datalist.cases}
    assert "label grid differs from image grid: shape 5 x 5 x 5" in report


def test_a_second_copy_of_a_patient_is_skipped(tree: Path, indexed: Callable[..., Any]) -> None:
    folder = tree / "database" / "training" / "patient001"
    copy = tree / "copy" / "patient001" / "patient001_frame01.nii.gz"
    copy.parent.mkdir(parents=True)
    copy.write_bytes((folder / "patient001_frame01.nii.gz").read_bytes())
    datalist, report = indexed("acdc", tree)
    assert len(datalist.cases) == 6
    assert "the same name as" in report


def test_another_folder_is_refused(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3)), np.eye(4)), tmp_path / "brain.nii.gz")
    with pytest.raises(UserError, match=r"nothing there looks like ACDC.*give the folder of the download"):
        indexed("acdc", tmp_path)
