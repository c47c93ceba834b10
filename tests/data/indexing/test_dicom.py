"""People's own DICOM: structures find their series, visits their series, and what is left out is said."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom.export import main as export
from monai_ext.data.dicom.segmentation import read_segmentation
from monai_ext.data.images import read_geometry, read_image, read_label
from monai_ext.data.indexing.__main__ import main
from monai_ext.data.manifest import load_datalist
from monai_ext.data.pairs import pair_with_reference
from monai_ext.data.phantoms.dicom import write_ct_series, write_rtstruct
from monai_ext.errors import UserError
from phantoms.four_d_lung import write_phantom_4d_lung
from phantoms.seg import write_seg

SHAPE, AFFINE = (26, 20, 9), np.diag([-1.0, -1.5, 3.0, 1.0])
CENTRE, RADIUS = np.array([12.2, 14.3, 12.0]), 7.9  # LPS mm
FIRST, SECOND = datetime.date(2021, 12, 30), datetime.date(2022, 1, 5)


def sphere() -> np.ndarray:
    """Whether the centre of a voxel lies in the sphere."""
    places = np.indices(SHAPE) * np.array([1.0, 1.5, 3.0])[:, None, None, None]
    return ((places - CENTRE[:, None, None, None]) ** 2).sum(axis=0) < RADIUS**2


def outlines(centre: np.ndarray = CENTRE, radius: float = RADIUS) -> list[np.ndarray]:
    """Circles of the sphere on the slices, in LPS mm."""
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    drawn = []
    for z in np.arange(SHAPE[2]) * 3.0:
        if abs(z - centre[2]) < radius:
            r = np.sqrt(radius**2 - (z - centre[2]) ** 2)
            circle = [centre[0] + r * np.cos(angle), centre[1] + r * np.sin(angle), np.full(len(angle), z)]
            drawn.append(np.stack(circle, axis=1))
    return drawn


def write_series(root: Path, patient: str, date: datetime.date | None, number: int = 1, **how: Any) -> list[Path]:
    values = np.random.default_rng(number).integers(-1000, 400, how.pop("shape", SHAPE))
    folder = root / "export" / f"{patient[0]}-{date}-{number}"
    return write_ct_series(
        folder, values, how.pop("affine", AFFINE), patient_id=patient, study_date=date, series_number=number, **how
    )


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two visits of one patient; the structures of the first lie in a folder of their own."""
    root = tmp_path_factory.mktemp("written") / "hospital"
    first = write_series(root, "A/1", FIRST, reverse=True)
    write_series(root, "A/1", SECOND)
    write_rtstruct(root / "structures" / "rs.dcm", first, {"Cord": [], "GTV-1": outlines()}, shuffle=True)
    return root


@pytest.fixture
def root(hospital: Path, tmp_path: Path) -> Path:
    """A copy of the hospital, to change."""
    return shutil.copytree(hospital, tmp_path / "hospital")


def test_the_later_visit_is_served_by_the_contoured_one(root: Path, indexed: Callable[..., Any]) -> None:
    datalist, report = indexed("dicom", root, roi=("tumour=GTV.*",))
    assert [(c.case, c.patient, c.visit) for c in datalist.cases] == [
        ("A_1_2021-12-30", "A/1", FIRST),
        ("A_1_2022-01-05", "A/1", SECOND),
    ]
    first, second = datalist.cases
    assert (datalist.modality, datalist.labels) == ("CT", {"tumour": 1})
    np.testing.assert_array_equal(read_label(first.label), sphere())
    np.testing.assert_array_equal(read_image(first.image), np.random.default_rng(1).integers(-1000, 400, SHAPE))
    np.testing.assert_allclose(read_geometry(first.image).affine, AFFINE, atol=1e-4)
    assert second.label is None
    (pair,) = pair_with_reference(datalist)
    assert (pair["case"], pair["reference_label"]) == (second.case, [first.label])
    assert "skipped: nothing" in report


def test_a_case_finds_back_to_its_series(root: Path, tmp_path: Path, indexed: Callable[..., Any]) -> None:
    case = indexed("dicom", root)[0].cases[0]
    (tmp_path / "masks").mkdir()
    shutil.copy(case.label, tmp_path / "masks" / f"{case.case}.nii.gz")
    masks = ["--masks", str(tmp_path / "masks"), "--datalist", str(tmp_path / "list.json")]
    export([*masks, "--format", "seg", "--output", str(tmp_path / "out")])
    written = read_segmentation(tmp_path / "out" / f"{case.case}.dcm")
    assert written.referenced_series == (case.model_extra["dicom_series"]["uid"],)


def test_seg_serves_as_well(root: Path, indexed: Callable[..., Any]) -> None:
    shutil.rmtree(root / "structures")
    files = write_series(root, "A/1", FIRST)
    write_seg(root / "seg.dcm", files, {"Lesion": sphere()})
    datalist, _ = indexed("dicom", root, labels={"tumour": 3})
    np.testing.assert_array_equal(read_label(datalist.cases[0].label), 3 * sphere())
    assert datalist.labels == {"tumour": 3}


@pytest.mark.slow
def test_each_patient_has_its_own_reference(root: Path, indexed: Callable[..., Any]) -> None:
    moved = CENTRE + (4.0, -3.0, 3.0)
    write_rtstruct(root / "b.dcm", write_series(root, "B", FIRST), {"gtv-1": outlines(moved)})
    write_series(root, "B", SECOND)
    datalist, _ = indexed("dicom", root)
    assert [(pair["case"], pair["reference"]) for pair in pair_with_reference(datalist)] == [
        ("A_1_2022-01-05", ["A_1_2021-12-30"]),
        ("B_2022-01-05", ["B_2021-12-30"]),
    ]
    np.testing.assert_array_equal(read_label(datalist.cases[0].label), sphere())
    np.testing.assert_array_equal(read_label(datalist.cases[2].label), np.roll(sphere(), (4, -2, 1), axis=(0, 1, 2)))


def test_several_structures_have_values_in_their_order(root: Path, indexed: Callable[..., Any]) -> None:
    small = outlines(radius=3.5)
    series = sorted((root / "export").glob("*2021*/*.dcm"), reverse=True)
    write_rtstruct(root / "structures" / "rs.dcm", series, {"core": small, "GTV": outlines(), "gtv2": outlines()[:1]})
    datalist, report = indexed("dicom", root, roi=("whole=gtv", "core=core"))
    label = read_label(datalist.cases[0].label)
    np.testing.assert_array_equal(label > 0, sphere())
    assert datalist.labels == {"whole": 1, "core": 2}
    assert 0 < (label == 2).sum() < (label == 1).sum()
    assert "'GTV', 'gtv2' are united" in report
    assert f"{(label == 2).sum()} voxels belong to several structures" in report


def test_a_name_that_is_not_there_is_answered_with_those_that_are(root: Path, indexed: Callable[..., Any]) -> None:
    series = sorted((root / "export").glob("*2021*/*.dcm"), reverse=True)
    write_rtstruct(root / "more.dcm", series, {"Heart": outlines()})
    with pytest.raises(UserError, match=r"called 'lung' \(x\); there are: 'GTV-1', 'Heart'"):
        indexed("dicom", root, roi=("x=lung",))
    with pytest.raises(UserError, match=r"say which ROI .*there are: 'GTV-1', 'Heart'"):
        indexed("dicom", root)


def test_a_visit_without_contours_is_the_series_described_as_an_annotated_one(
    root: Path, indexed: Callable[..., Any]
) -> None:
    longer = (*SHAPE[:2], SHAPE[2] + 3)
    write_series(root, "A/1", SECOND, 2, shape=longer, series_description="lung kernel")
    datalist, report = indexed("dicom", root)
    assert datalist.cases[1].model_extra["dicom_series"]["folder"].endswith("2022-01-05-1")
    assert "(series 'lung kernel')" in report


@pytest.mark.slow
def test_else_the_largest_axial_series_is_taken(root: Path, indexed: Callable[..., Any]) -> None:
    third = datetime.date(2022, 3, 1)
    sagittal = np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    write_series(root, "A/1", third, 1, shape=(20, 20, 4), series_description="short")
    write_series(root, "A/1", third, 2, series_description="long")
    write_series(root, "A/1", third, 3, shape=(20, 20, 30), affine=sagittal, series_description="sagittal")
    write_series(root, "A/1", third, 4, shape=(20, 20, 30), drop=[7], series_description="broken")
    datalist, report = indexed("dicom", root)
    assert datalist.cases[2].model_extra["dicom_series"]["folder"].endswith("2022-03-01-2")
    assert "skipped: 3" in report
    assert "of this visit is taken; --image_pattern chooses another one" in report


def test_image_pattern_chooses_by_description(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(root, "A/1", SECOND, 2, series_description="lung kernel")
    output = tmp_path / "list.json"
    main(["dicom", str(root), "-o", str(output), "--image_pattern", "kernel", "--labels", "GTV-1=1"])
    (case,) = load_datalist(output).cases
    assert (case.case, case.label) == ("A_1_2022-01-05", None)
    assert "its SeriesDescription does not fit --image_pattern" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no series is left .* does not fit --image_pattern"):
        main(["dicom", str(root), "-o", str(output), "--image_pattern", "bone"])


def test_structures_can_be_named_one_by_one(root: Path, tmp_path: Path) -> None:
    series = sorted((root / "export").glob("*2021*/*.dcm"), reverse=True)
    write_rtstruct(root / "structures" / "rs.dcm", series, {"core": outlines(radius=3.5), "GTV": outlines()})
    output = tmp_path / "list.json"
    main(["dicom", str(root), "-o", str(output), "--roi", "whole=gtv", "--roi", "core=core"])
    assert load_datalist(output).labels == {"whole": 1, "core": 2}


@pytest.mark.slow
def test_phantom_patients_stay_apart(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    for seed in (0, 1):
        write_phantom_4d_lung(tmp_path / "lung", seed, gates=(0,))
    datalist, _ = indexed("dicom", tmp_path / "lung", roi=("tumour=tumor",))
    assert len(pair_with_reference(datalist)) == 2
    assert {case.patient for case in datalist.cases} == {"100_HM10395", "101_HM10396"}


def test_the_annotated_modality_is_taken(root: Path, indexed: Callable[..., Any]) -> None:
    write_series(root, "A/1", SECOND, 2, modality="MR")
    datalist, report = indexed("dicom", root)
    assert [case.case for case in datalist.cases] == ["A_1_2021-12-30", "A_1_2022-01-05"]
    assert "MR and not CT; --modality chooses another one" in report
    datalist, _ = indexed("dicom", root, modality="MR", labels={"tumour": 1})
    assert (datalist.modality, [case.label for case in datalist.cases]) == ("MR", [None])
    shutil.rmtree(root / "structures")
    with pytest.raises(UserError, match="holds images of CT, MR; choose one"):
        indexed("dicom", root, labels={"tumour": 1})


def test_a_second_file_of_the_same_structure_is_left_out(root: Path, indexed: Callable[..., Any]) -> None:
    series = sorted((root / "export").glob("*2021*/*.dcm"), reverse=True)
    write_seg(root / "seg.dcm", series, {"gtv-1": sphere()})
    _, report = indexed("dicom", root)
    assert "GTV-1 of the same series is taken from" in report


def test_annotated_series_of_one_visit_are_cases_of_their_own(root: Path, indexed: Callable[..., Any]) -> None:
    second = write_series(root, "A/1", FIRST, 2, series_description="lung kernel")
    write_seg(root / "seg.dcm", second, {"GTV-1": sphere()})
    datalist, report = indexed("dicom", root)
    assert [case.case for case in datalist.cases] == ["A_1_2021-12-30_1", "A_1_2021-12-30_2", "A_1_2022-01-05"]
    assert "A/1 has 2 annotated series of 2021-12-30, which serve together as references" in report


def test_files_without_a_date_are_named(root: Path, indexed: Callable[..., Any]) -> None:
    write_series(root, "C", None)
    datalist, report = indexed("dicom", root)
    assert datalist.cases[-1].visit is None
    assert "no date of study in files of C" in report


def test_contours_of_absent_series_are_named(root: Path, indexed: Callable[..., Any]) -> None:
    shutil.rmtree(next((root / "export").glob("*2021*")))
    datalist, report = indexed("dicom", root, labels={"tumour": 1})
    assert "rs.dcm: refers to an image series that is not here" in report
    assert "nothing is annotated" in report
    assert len(datalist.cases) == 1


def test_a_folder_without_images_is_refused(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="holds no DICOM images"):
        indexed("dicom", tmp_path)


def test_folder_sends_dicom_here(root: Path, indexed: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="index them with dicom in place of folder"):
        indexed("folder", root)


def edit(path: Path, **elements: Any) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def contoured(root: Path) -> list[Path]:
    """The slices of the contoured visit, from low to high."""
    return sorted((root / "export").glob("*2021*/*.dcm"), reverse=True)


@pytest.mark.slow
def test_the_series_of_what_is_asked_for_is_taken(root: Path, indexed: Callable[..., Any]) -> None:
    pet = write_series(root, "A/1", FIRST, 2, modality="PT")
    write_rtstruct(root / "pet.dcm", pet, {"lesion": outlines()})
    datalist, _ = indexed("dicom", root, roi=("x=lesion",))
    assert (datalist.modality, len(datalist.cases)) == ("PT", 1)
    np.testing.assert_array_equal(read_label(datalist.cases[0].label), sphere())
    assert indexed("dicom", root, roi=("x=gtv",))[0].modality == "CT"
    with pytest.raises(UserError, match=r"'lesion' is drawn on PT \(.*choose it with --modality"):
        indexed("dicom", root, roi=("x=lesion",), modality="CT")


def test_a_contoured_pet_is_taken_where_the_ct_has_no_contours(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    root = tmp_path / "hospital"
    write_series(root, "A", FIRST)
    write_rtstruct(root / "pet.dcm", write_series(root, "A", FIRST, 2, modality="PT"), {"lesion": outlines()})
    datalist, report = indexed("dicom", root)
    assert (datalist.modality, [case.label is not None for case in datalist.cases]) == ("PT", [True])
    assert "CT and not PT; --modality chooses another one" in report


def test_what_fits_on_a_series_that_was_not_chosen_is_named(root: Path, indexed: Callable[..., Any]) -> None:
    write_rtstruct(root / "mr.dcm", write_series(root, "A/1", FIRST, 2, modality="MR"), {"GTV_MR": outlines()})
    _, report = indexed("dicom", root, roi=("tumour=gtv",), modality="CT")
    assert "1 series that were not chosen fit too and are left out: 'GTV_MR' on MR (" in report
    _, report = indexed("dicom", root, roi=("tumour=gtv-1",), modality="CT")
    assert "not chosen" not in report


def test_an_rtstruct_may_share_the_uid_of_its_ct(root: Path, indexed: Callable[..., Any]) -> None:
    uid = pydicom.dcmread(contoured(root)[0]).SeriesInstanceUID
    edit(root / "structures" / "rs.dcm", SeriesInstanceUID=uid)
    shutil.move(root / "structures" / "rs.dcm", contoured(root)[0].with_name("zz.dcm"))
    datalist, report = indexed("dicom", root)
    np.testing.assert_array_equal(read_label(datalist.cases[0].label), sphere())
    assert "skipped: nothing" in report


def test_visits_of_one_series_uid_are_cases_of_their_own(root: Path, indexed: Callable[..., Any]) -> None:
    uid = pydicom.dcmread(contoured(root)[0]).SeriesInstanceUID
    for path in (root / "export").glob("*2022*/*.dcm"):
        edit(path, SeriesInstanceUID=uid)
    datalist, report = indexed("dicom", root)
    assert [(case.visit, case.label is not None) for case in datalist.cases] == [(FIRST, True), (SECOND, False)]
    assert f"2 image series share the SeriesInstanceUID {uid} (2021-12-30, 2022-01-05)" in report


def test_copied_folders_count_once(root: Path, indexed: Callable[..., Any]) -> None:
    shutil.copytree(root, root / "backup")
    datalist, report = indexed("dicom", root)
    assert [case.case for case in datalist.cases] == ["A_1_2021-12-30", "A_1_2022-01-05"]
    np.testing.assert_array_equal(read_label(datalist.cases[0].label), sphere())
    assert "19 files are copies and passed over (such as" in report


def test_files_of_one_lesion_each_are_united(root: Path, indexed: Callable[..., Any]) -> None:
    shutil.rmtree(root / "structures")
    low, high = sphere(), sphere()
    low[:, :, 4:], high[:, :, :4] = False, False
    for name, mask in (("a", low), ("b", high)):
        write_seg(root / f"{name}.dcm", contoured(root), {"Nodule": mask})
    datalist, report = indexed("dicom", root)
    np.testing.assert_array_equal(read_label(datalist.cases[0].label), sphere())
    assert "'Nodule' (" in report


@pytest.mark.slow
def test_two_observers_are_refused(root: Path, indexed: Callable[..., Any]) -> None:
    write_rtstruct(root / "second.dcm", contoured(root), {"GTV-1": outlines(radius=5.0)})
    with pytest.raises(UserError, match=r"A_1_2021-12-30: .*second.dcm and .*rs.dcm draw 'GTV-1' differently"):
        indexed("dicom", root)
    write_rtstruct(root / "b.dcm", write_series(root, "B", FIRST), {"gtv-1": outlines()})
    datalist, report = indexed("dicom", root)
    assert [case.case for case in datalist.cases if case.label] == ["B_2021-12-30"]
    assert "draw 'GTV-1' differently" in report


def share_number(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    for item in dataset.StructureSetROISequence:
        item.ROINumber = 1
    for item in dataset.ROIContourSequence:
        item.ReferencedROINumber = 1
    dataset.save_as(path)


def test_rois_of_one_number_are_refused(root: Path, indexed: Callable[..., Any]) -> None:
    path = root / "structures" / "rs.dcm"
    write_rtstruct(path, contoured(root), {"Liver": outlines(radius=3.0), "GTV": outlines()})
    share_number(path)
    with pytest.raises(UserError, match=r"rs.dcm: ROI 'GTV' shares the ROINumber 1 with 'Liver'"):
        indexed("dicom", root, roi=("tumour=gtv",))


@pytest.mark.slow
def test_a_series_on_which_a_structure_is_missing_is_no_reference(root: Path, indexed: Callable[..., Any]) -> None:
    path = write_rtstruct(root / "liver.dcm", contoured(root), {"Liver": outlines(), "Heart": outlines()})
    share_number(path)
    write_rtstruct(root / "b.dcm", write_series(root, "B", FIRST), {"gtv-1": outlines()})
    datalist, report = indexed("dicom", root, roi=("tumour=gtv", "liver=liver"))
    assert "A_1_2021-12-30" not in {case.case for case in datalist.cases}
    assert "so that it is open whose contours are whose" in report


def test_a_roi_without_contours_is_said_to_have_none(root: Path, indexed: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"rs\.dcm: ROI 'Cord' has no contours"):
        indexed("dicom", root, roi=("cord=^cord",))
