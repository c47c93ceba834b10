"""NSCLC-Radiomics trees: SEG first, RTSTRUCT where there is none, every voxel in its slice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from monai_ext.data.cards import load_card
from monai_ext.data.images import read_geometry, read_image, read_label
from monai_ext.data.indexing.index import Index
from monai_ext.data.indexing.nsclc_radiomics import _add_splits
from monai_ext.data.phantoms.dicom import write_ct_series, write_rtstruct
from monai_ext.errors import UserError
from phantoms.seg import write_seg

SHAPE, AFFINE = (24, 20, 9), np.diag([-1.0, -1.5, 3.0, 1.0])


def tumour() -> np.ndarray:
    x, y, z = np.indices(SHAPE)
    return ((x - 9) / 5) ** 2 + ((y - 8) / 3) ** 2 + ((z - 4) / 2.5) ** 2 < 1


def write_patient(root: Path, name: str, *, seg: bool = True, rtstruct: bool = True, label: str = "GTV-1") -> Path:
    study = root / name / "01-01-2014-StudyID-NA-85095"
    values = np.random.default_rng(int(name[-3:])).integers(-1000, 400, SHAPE)
    files = write_ct_series(study / "0.0-NA-82046", values, AFFINE, patient_id=name, reverse=True)
    if seg:
        lungs = np.indices(SHAPE)[0] > 12
        write_seg(study / "300.0-Segmentation-9.554" / "1-1.dcm", files, {"Lung-Left": lungs, label: tumour()})
    if rtstruct:
        square = np.array([[4, 4], [12, 4], [12, 9], [4, 9]]) - 0.5
        outline = np.column_stack([square * (1.0, 1.5), np.full(4, 12.0)])
        write_rtstruct(study / "0.0-NA-28595" / "1-1.dcm", files, {"Heart": [], label: [outline]}, shuffle=True)
    return study


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "NSCLC-Radiomics"


@pytest.mark.slow
def test_seg_comes_first(root: Path, indexed: Callable[..., Any]) -> None:
    for name in ("LUNG1-002", "LUNG1-010"):
        write_patient(root, name)
    datalist, report = indexed("nsclc_radiomics", root)
    assert [case.case for case in datalist.cases] == ["LUNG1-002", "LUNG1-010"]
    for case in datalist.cases:
        np.testing.assert_array_equal(read_label(case.label), tumour())
        np.testing.assert_allclose(read_geometry(case.image).affine, AFFINE, atol=1e-4)
        values = np.random.default_rng(int(case.case[-3:])).integers(-1000, 400, SHAPE)
        np.testing.assert_array_equal(read_image(case.image), values)
    assert "skipped: nothing" in report


def test_rtstruct_where_there_is_no_seg(root: Path, indexed: Callable[..., Any]) -> None:
    write_patient(root, "LUNG1-001")
    write_patient(root, "LUNG1-003", seg=False)
    datalist, report = indexed("nsclc_radiomics", root)
    drawn = np.zeros(SHAPE)
    drawn[4:12, 4:9, 4] = 1
    np.testing.assert_array_equal(read_label(datalist.cases[1].label), drawn)
    assert "1 of 2 label maps were drawn from RTSTRUCT, the others from SEG" in report


@pytest.mark.slow
def test_what_cannot_be_used_is_named(root: Path, indexed: Callable[..., Any]) -> None:
    write_patient(root, "LUNG1-001")
    write_patient(root, "LUNG1-128", seg=False, rtstruct=False)
    write_patient(root, "LUNG1-200", label="GTV-10", rtstruct=False)
    shutil.rmtree(write_patient(root, "LUNG1-300") / "0.0-NA-82046")
    datalist, report = indexed("nsclc_radiomics", root)
    assert [case.case for case in datalist.cases] == ["LUNG1-001"]
    assert "refers to this series" in report
    assert "there are: 'Lung-Left', 'GTV-10'" in report
    assert "refers to an image series that is not here" in report


@pytest.mark.slow
def test_a_frame_without_its_slice_is_not_placed(root: Path, indexed: Callable[..., Any]) -> None:
    write_patient(root, "LUNG1-001")
    study = write_patient(root, "LUNG1-002", rtstruct=False)
    path = next(study.glob("300*/*.dcm"))
    dataset = pydicom.dcmread(path)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        del groups.PlanePositionSequence
        groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    dataset.save_as(path)
    datalist, report = indexed("nsclc_radiomics", root)
    assert [case.case for case in datalist.cases] == ["LUNG1-001"]
    assert "names 1 slices, 0 of them of this series" in report


def test_another_structure_can_be_chosen(root: Path, indexed: Callable[..., Any]) -> None:
    write_patient(root, "LUNG1-001")
    datalist, _ = indexed("nsclc_radiomics", root, roi=("lung-left",))
    np.testing.assert_array_equal(read_label(datalist.cases[0].label), np.indices(SHAPE)[0] > 12)


def test_the_split_is_cut_from_the_complete_set_only() -> None:
    card = load_card("nsclc_radiomics")
    names = [f"LUNG1-{number:03d}" for number in range(1, 423) if number != 128]
    complete = Index({"cases": [{"patient": name} for name in reversed(names)]})
    _add_splits(card, complete)
    splits = {entry["patient"]: entry["split"] for entry in complete.datalist["cases"]}
    assert (splits[names[336]], splits[names[337]], splits[names[-1]]) == ("train", "val", "test")
    partial = Index({"cases": [{"patient": name} for name in names[:9]]})
    _add_splits(card, partial)
    assert {entry["split"] for entry in partial.datalist["cases"]} == {None}
    assert "here are 9" in partial.notes[0]


def test_a_folder_without_images_is_not_the_download(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="nothing there looks like NSCLC-Radiomics"):
        indexed("nsclc_radiomics", tmp_path)


def test_parts_in_seg_files_of_their_own_are_united(root: Path, indexed: Callable[..., Any]) -> None:
    study = write_patient(root, "LUNG1-001", seg=False, rtstruct=False)
    files = sorted((study / "0.0-NA-82046").iterdir(), reverse=True)
    left, right = tumour(), tumour()
    left[9:], right[:9] = False, False
    for number, part in enumerate((left, right)):
        write_seg(study / f"300.{number}" / "1-1.dcm", files, {"GTV-1": part}, series_description=f"part {number}")
    datalist, report = indexed("nsclc_radiomics", root)
    np.testing.assert_array_equal(read_label(datalist.cases[0].label), tumour())
    assert "are united" in report
