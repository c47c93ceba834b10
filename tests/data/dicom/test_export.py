from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom import export
from monai_ext.data.dicom.export import FORMATS, export_mask, main
from monai_ext.data.dicom.series import group_headers, read_volume
from monai_ext.data.dicom.source import load_source
from monai_ext.data.dicom.structures import package_version
from monai_ext.data.phantoms.dicom import write_ct_series
from monai_ext.errors import UserError

SHAPE = (18, 15, 6)
LABELS = {"tumour": 1, "left kidney": 4}


def oblique() -> np.ndarray:
    a, b = np.radians(20), np.radians(-35)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return about_z @ about_x @ np.diag([-0.9, -1.3, 2.5])


AXES: dict[str, np.ndarray] = {
    "axial": np.diag([-1.5, -1.5, 3.0]),
    "non-square": np.diag([-0.8, -1.7, 4.0]),
    "oblique": oblique(),
    "sagittal": np.array([[0, 0, -4.0], [-1.1, 0, 0], [0, -1.1, 0]]),
    "coronal": np.array([[-1.1, 0, 0], [0, 0, 4.0], [0, -0.9, 0]]),
    "feet first": np.diag([-1.5, 1.5, -3.0]),
}


def affine_of(axes: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, (31.25, -12.5, 7.75)
    return affine


def make_mask() -> np.ndarray:
    """Two structures without any symmetry: hole, island, corners that touch, single voxels, voxels at the border."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[2:11, 3:12, 1:4] = 1
    mask[4:9, 5:10, 2] = 0  # a hole with an island
    mask[6, 7, 2] = 1
    mask[11, 12, 1] = 1  # touches at a corner
    mask[0, 0, 0] = mask[17, 14, 5] = 1
    mask[13:18, 2:7, 3:6] = 4
    mask[15, 4, 4] = 0
    return mask


def write_nifti(path: Path, mask: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(mask, affine), path)
    return path


def write_series(folder: Path, axes: str = "axial", **options: Any) -> Path:
    array = np.random.default_rng(0).normal(size=SHAPE) * 100
    write_ct_series(folder, array, affine_of(AXES[axes]), **options)
    return folder


@pytest.fixture
def series(tmp_path) -> Path:
    return write_series(tmp_path / "series")


@pytest.fixture
def mask(tmp_path) -> Path:
    return write_nifti(tmp_path / "mask.nii.gz", make_mask(), affine_of(AXES["axial"]))


# -------------------------------------------------------------------------------------------- masks are where they were


def centres_lps(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centres [n, 3] of a mask's voxels in LPS mm."""
    return (nib.affines.apply_affine(affine, np.argwhere(mask)) * [-1, -1, 1]).round(2) + 0.0


def crossings(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How often a ray from each of the points [n, 2] in the plane crosses a polygon."""
    count = np.zeros(len(points), dtype=int)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            between = (y0 > points[:, 1]) != (y1 > points[:, 1])
            count += between & (x0 + (points[:, 1] - y0) / (y1 - y0) * (x1 - x0) > points[:, 0])
    return count


def contour_centres(path: Path, name: str, everywhere: np.ndarray) -> np.ndarray:
    """Those of the points [n, 3] that lie in the plane of an outline and inside an odd number of outlines."""
    dataset = pydicom.dcmread(path)
    number = next(roi.ROINumber for roi in dataset.StructureSetROISequence if roi.ROIName == name)
    drawn = next(item for item in dataset.ROIContourSequence if item.ReferencedROINumber == number)
    inside = np.zeros(len(everywhere), dtype=int)
    for contour in drawn.ContourSequence:
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        _, _, (u, v, normal) = np.linalg.svd(points - points.mean(axis=0))
        basis = np.stack([u, v], axis=1)
        near = np.abs((everywhere - points[0]) @ normal) < 0.1
        inside[near] += crossings(points @ basis, everywhere[near] @ basis)
    return everywhere[inside % 2 == 1]


def seg_centres(path: Path, name: str) -> np.ndarray:
    seg = highdicom.seg.segread(path)
    (number,) = seg.get_segment_numbers(segment_label=name)
    volume = seg.get_volume(segment_numbers=[number])
    indices = np.argwhere(volume.array[..., 0])
    return (nib.affines.apply_affine(volume.affine, indices)).round(2) + 0.0


def as_set(points: np.ndarray) -> set[tuple[float, ...]]:
    return set(map(tuple, points.tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reversed"])
@pytest.mark.parametrize("axes", AXES)
def test_both_kinds_give_back_the_mask_in_the_patient(tmp_path, axes, reverse):
    """The readers of this test know nothing of the package's own."""
    affine = affine_of(AXES[axes])
    source = load_source(write_series(tmp_path / "series", axes, reverse=reverse))
    path = write_nifti(tmp_path / "mask.nii.gz", make_mask(), affine)
    everywhere = centres_lps(np.ones(SHAPE), affine)
    for kind in FORMATS:
        exported = export_mask(path, source, LABELS, tmp_path / f"{kind}.dcm", kind)
        assert exported.dice == {"tumour": 1.0, "left kidney": 1.0}
    for name, value in LABELS.items():
        truth = as_set(centres_lps(make_mask() == value, affine))
        assert as_set(contour_centres(tmp_path / "rtstruct.dcm", name, everywhere)) == truth
        assert as_set(seg_centres(tmp_path / "seg.dcm", name)) == truth


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
def test_axes_may_be_stored_in_any_order_and_direction(tmp_path, series, order, flips):
    stored = nib.Nifti1Image(make_mask(), affine_of(AXES["axial"]))
    turn = nib.orientations.axcodes2ornt(tuple(np.array(["R", "A", "S"])[list(order)]))
    turn[list(flips), 1] *= -1
    stored.as_reoriented(turn).to_filename(tmp_path / "mask.nii.gz")
    exported = export_mask(tmp_path / "mask.nii.gz", load_source(series), LABELS, tmp_path / "out.dcm", "seg")
    assert exported.path is not None
    assert as_set(seg_centres(exported.path, "tumour")) == as_set(
        centres_lps(make_mask() == 1, affine_of(AXES["axial"]))
    )


def test_round_trip_with_our_own_conversion(tmp_path):
    folder = write_series(tmp_path / "series", "oblique", reverse=True)
    volume = read_volume(group_headers(folder)[0])
    path = write_nifti(tmp_path / "mask.nii", make_mask(), volume.affine.astype(np.float32))
    for kind in FORMATS:
        exported = export_mask(path, load_source(folder), LABELS, tmp_path / f"{kind}.dcm", kind)
        assert set(exported.dice.values()) == {1.0}


def test_contours_name_the_slice_in_whose_plane_they_lie(tmp_path, series, mask):
    export_mask(mask, load_source(series), LABELS, tmp_path / "out.dcm", "rtstruct")
    heights = {d.SOPInstanceUID: float(d.ImagePositionPatient[2]) for d in map(pydicom.dcmread, series.iterdir())}
    dataset = pydicom.dcmread(tmp_path / "out.dcm")
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    (referenced,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert {image.ReferencedSOPInstanceUID for image in referenced.ContourImageSequence} == set(heights)
    for roi in dataset.ROIContourSequence:
        for contour in roi.ContourSequence:
            (z,) = set(map(float, contour.ContourData[2::3]))
            assert z == pytest.approx(heights[contour.ContourImageSequence[0].ReferencedSOPInstanceUID])


def test_long_contours_stay_contours(tmp_path):
    """More than the 65534 bytes that an explicit VR has room for, in one outline with 529 holes."""
    mask = np.ones((70, 70, 1), dtype=np.uint8)
    mask[1::3, 1::3] = 0
    affine = affine_of(AXES["axial"])
    write_ct_series(tmp_path / "series", np.zeros(mask.shape), affine)
    path = write_nifti(tmp_path / "mask.nii.gz", mask, affine)
    exported = export_mask(path, load_source(tmp_path / "series"), {"sieve": 1}, tmp_path / "out.dcm", "rtstruct")
    assert exported.dice == {"sieve": 1.0}
    (contour,) = pydicom.dcmread(tmp_path / "out.dcm").ROIContourSequence[0].ContourSequence
    assert contour["ContourData"].VR == "DS"
    assert sum(len(str(value)) + 1 for value in contour.ContourData) > 65534


# ------------------------------------------------------------------------------------------------- what the files say


@pytest.mark.parametrize("kind", FORMATS)
def test_the_file_lands_in_the_same_study_and_says_who_made_it(tmp_path, mask, kind):
    elements = {
        "PatientName": "Müller^Jörg",
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientBirthDate": "19600229",
        "AccessionNumber": "A17",
        "StudyDescription": "Verlauf",
        "PhysiciansOfRecord": "Özil^Änne",
        "InstitutionName": "Hospital",
        "PatientSex": "X",
    }
    folder = write_series(tmp_path / "series", elements=elements, series_number=3)
    export_mask(mask, load_source(folder), {"tumör": 1}, tmp_path / "out.dcm", kind, algorithm="p2sam")
    image, made = pydicom.dcmread(next(folder.iterdir())), pydicom.dcmread(tmp_path / "out.dcm")
    for keyword in (
        *("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID"),
        *("AccessionNumber", "StudyDescription", "PhysiciansOfRecord", "FrameOfReferenceUID"),
    ):
        assert made[keyword].value == image[keyword].value, keyword
    assert made.SeriesInstanceUID != image.SeriesInstanceUID
    assert made.SeriesDescription == f"p2sam, monai_ext {package_version()}, research use only"
    assert made.ContentQualification == "RESEARCH"
    assert made.PatientSex == ""
    assert "InstitutionName" not in made
    assert "tumör" in str(made)


def test_rtstruct_is_unapproved_and_automatic(tmp_path, series, mask):
    export_mask(mask, load_source(series), LABELS, tmp_path / "out.dcm", "rtstruct")
    dataset = pydicom.dcmread(tmp_path / "out.dcm")
    assert (dataset.ApprovalStatus, dataset.Modality) == ("UNAPPROVED", "RTSTRUCT")
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == list(LABELS)
    assert {roi.ROIGenerationAlgorithm for roi in dataset.StructureSetROISequence} == {"AUTOMATIC"}
    assert [list(roi.ROIDisplayColor) for roi in dataset.ROIContourSequence] == [[86, 180, 233], [240, 228, 66]]
    assert {contour.ContourGeometricType for roi in dataset.ROIContourSequence for contour in roi.ContourSequence} == {
        "CLOSED_PLANAR"
    }


def test_seg_codes_what_a_segment_is_and_which_algorithm_found_it(tmp_path, series, mask):
    main(
        [
            *("--mask", str(mask), "--series", str(series), "--format", "seg", "--output", str(tmp_path / "out.dcm")),
            *("--labels", "GTV=1", "left kidney=4", "--algorithm", "p2sam"),
            *("--type", "GTV=4147007:SCT:Mass"),
        ]
    )
    seg = highdicom.seg.segread(tmp_path / "out.dcm")
    mass, kidney = seg.SegmentSequence
    assert mass.SegmentedPropertyTypeCodeSequence[0].CodeValue == "4147007"
    (coded,) = kidney.SegmentedPropertyTypeCodeSequence
    assert coded.CodeMeaning == "Kidney"
    assert coded.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert (mass.SegmentAlgorithmType, mass.SegmentAlgorithmName) == ("AUTOMATIC", "p2sam")
    assert mass.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == package_version()
    assert seg.ContentLabel == "MONAI_EXT"


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_mask_gives_the_same_bytes_and_another_one_other_uids(tmp_path, series, mask, kind):
    source, first, second, third = load_source(series), *(tmp_path / f"{name}.dcm" for name in "abc")
    export_mask(mask, source, LABELS, first, kind)
    export_mask(mask, source, LABELS, second, kind)
    assert first.read_bytes() == second.read_bytes()
    other = make_mask()
    other[5, 5, 5] = 1
    write_nifti(mask, other, affine_of(AXES["axial"]))
    export_mask(mask, source, LABELS, third, kind)
    one, another = pydicom.dcmread(first), pydicom.dcmread(third)
    assert one.SOPInstanceUID != another.SOPInstanceUID


def test_contents_are_dated_when_the_mask_was_made(tmp_path, series, mask):
    os.utime(mask, (1_700_000_000, 1_700_000_000))
    export_mask(mask, load_source(series), LABELS, tmp_path / "rt.dcm", "rtstruct")
    export_mask(mask, load_source(series), LABELS, tmp_path / "seg.dcm", "seg")
    dates = (pydicom.dcmread(tmp_path / "rt.dcm").StructureSetDate, pydicom.dcmread(tmp_path / "seg.dcm").ContentDate)
    assert set(dates) <= {"20231114", "20231115"}  # by time zone


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_headers_without_what_may_be_empty(tmp_path, series, mask):
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        for keyword in ("StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "SliceThickness"):
            del dataset[keyword]
        dataset.SeriesNumber = None
        dataset.StudyDate, dataset.StudyTime = "removed", "noon"
        dataset.save_as(path)
    for kind in FORMATS:
        assert export_mask(mask, load_source(series), LABELS, tmp_path / f"{kind}.dcm", kind).path is not None


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_another_grid_is_refused_by_a_sentence_that_names_both(tmp_path, series):
    affine = affine_of(AXES["axial"])
    affine[2, 3] += 1.5  # half a slice
    path = write_nifti(tmp_path / "shifted.nii.gz", make_mask(), affine)
    with pytest.raises(UserError, match=r"18 x 15 x 6 voxels of 1.5 x 1.5 x 3 mm along L, P, S .*9\.25\).*7\.75\)"):
        export_mask(path, load_source(series), LABELS, tmp_path / "out.dcm", "seg")
    path = write_nifti(tmp_path / "cropped.nii.gz", make_mask()[1:], affine_of(AXES["axial"]))
    with pytest.raises(UserError, match="17 x 15 x 6"):
        export_mask(path, load_source(series), LABELS, tmp_path / "out.dcm", "rtstruct")
    assert not (tmp_path / "out.dcm").exists()


def test_a_structure_that_is_nowhere_is_left_out_with_a_note(tmp_path, series, mask):
    labels = {"tumour": 1, "lesion": 2}
    for kind in FORMATS:
        exported = export_mask(mask, load_source(series), labels, tmp_path / f"{kind}.dcm", kind)
        assert list(exported.voxels) == ["tumour"]
        assert any("lesion (value 2) has no voxel" in note for note in exported.notes)
        assert any("no name is given for the value 4" in note for note in exported.notes)


def test_an_empty_mask_is_not_exported(tmp_path, series):
    path = write_nifti(tmp_path / "empty.nii.gz", np.zeros(SHAPE, dtype=np.uint8), affine_of(AXES["axial"]))
    arguments = ["--mask", str(path), "--series", str(series), "--labels", "tumour=1", "--format", "seg"]
    with pytest.raises(UserError, match=r"empty.nii.gz: no structure has a voxel"):
        main([*arguments, "--output", str(tmp_path / "out" / "out.dcm")])
    assert not (tmp_path / "out").exists()


def test_values_of_no_name_are_told_where_nothing_is_left(tmp_path, series, mask):
    with pytest.raises(UserError, match=r"no structure has a voxel.*; no name is given for the value 1"):
        main(
            ["--mask", str(mask), "--series", str(series), "--labels", "tumour=9", "--format", "seg"]
            + ["--output", str(tmp_path / "out.dcm")]
        )


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_stays_of_a_file_that_reads_differently(tmp_path, series, mask, kind, monkeypatch):
    def lose_a_slice(path: Path, source: Any) -> dict[str, np.ndarray]:
        found = read_back(path, source)
        found["tumour"][:, :, 1] = False
        return found

    build, read_back, least = FORMATS[kind]
    monkeypatch.setitem(export.FORMATS, kind, (build, lose_a_slice, least))
    with pytest.raises(RuntimeError, match="differs from the mask"):
        export_mask(mask, load_source(series), LABELS, tmp_path / "out" / "out.dcm", kind)
    assert list((tmp_path / "out").iterdir()) == []


def test_slices_of_the_series_are_not_overwritten(tmp_path, series, mask):
    slice_path = next(series.iterdir())
    with pytest.raises(UserError, match="is a slice of the series"):
        export_mask(mask, load_source(series), LABELS, slice_path, "seg")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--labels", "tumour"], "write NAME=VALUE"),
        (["--labels", "tumour=0"], "whole number above 0"),
        (["--labels", "tumour=1", "tumour=2"], "given twice"),
        (["--labels", "a\\b=1"], "cannot be the name of a structure"),
        (["--labels", "tumour=1", "--type", "tumor=1:SCT:Mass"], "there is no structure 'tumor'"),
        (["--labels", "tumour=1", "--category", "tumour=1"], "NAME=VALUE:SCHEME:MEANING"),
        (["--labels", "tumour=1", "--algorithm", "x" * 40], "choose a name of 1 to"),
        ([], "say so with --labels"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, series, mask, options, sentence):
    files = ["--mask", str(mask), "--series", str(series), "--format", "seg", "--output", str(tmp_path / "out.dcm")]
    with pytest.raises(UserError, match=sentence):
        main([*files, *options])
    assert not (tmp_path / "out.dcm").exists()


# ------------------------------------------------------------------------------------------------ all masks of a run


@pytest.fixture
def run(tmp_path) -> dict[str, Any]:
    """A data list of three cases with their series, and the masks of two of them, one empty."""
    affine = affine_of(AXES["axial"])
    cases = []
    for number in range(3):
        folder = write_series(tmp_path / f"series{number}", series_number=number + 1)
        volume = read_volume(group_headers(folder)[0])
        write_nifti(tmp_path / f"image{number}.nii.gz", volume.array, volume.affine)
        cases.append(
            {
                "case": f"visit{number}",
                "image": f"image{number}.nii.gz",
                "dicom_series": {"folder": str(folder), "uid": group_headers(folder)[0].series_uid},
            }
        )
    (tmp_path / "masks").mkdir()
    write_nifti(tmp_path / "masks" / "visit1.nii.gz", make_mask(), affine)
    write_nifti(tmp_path / "masks" / "visit2.nii.gz", np.zeros(SHAPE, dtype=np.uint8), affine)
    return {"dataset": "small", "modality": "CT", "labels": LABELS, "cases": cases}


def all_masks(tmp_path: Path, content: dict[str, Any]) -> list[str]:
    (tmp_path / "list.json").write_text(json.dumps(content))
    return ["--datalist", str(tmp_path / "list.json"), "--format", "rtstruct"]


def test_all_masks_of_a_run_go_to_their_own_series(tmp_path, run, capsys):
    main([*all_masks(tmp_path, run), "--masks", str(tmp_path / "masks"), "--output", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert "1 of 2 masks written" in said.out
    assert "visit2.nii.gz: no structure has a voxel" in said.err
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "visit1.dcm"
    series = pydicom.dcmread(path).ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    assert series.RTReferencedSeriesSequence[0].SeriesInstanceUID == run["cases"][1]["dicom_series"]["uid"]


def test_one_mask_finds_its_series_in_the_data_list(tmp_path, run):
    mask = tmp_path / "masks" / "visit1.nii.gz"
    main([*all_masks(tmp_path, run), "--mask", str(mask), "--output", str(tmp_path / "out.dcm")])
    assert pydicom.dcmread(tmp_path / "out.dcm").StructureSetROISequence[1].ROIName == "left kidney"


def test_a_case_without_series_is_named(tmp_path, run):
    del run["cases"][1]["dicom_series"]
    with pytest.raises(UserError, match=r"'visit1'.*does not say which DICOM series"):
        main([*all_masks(tmp_path, run), "--masks", str(tmp_path / "masks"), "--output", str(tmp_path / "out")])


def test_what_an_earlier_mask_has_left_goes(tmp_path, series):
    """A structure that a second run no longer finds must not stay beside its masks as contours and measures."""
    masks, output = tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    case = {"case": "p1", "image": "p1.nii.gz", "dicom_series": {"folder": "series"}}
    write_nifti(tmp_path / "p1.nii.gz", make_mask(), affine_of(AXES["axial"]))
    content = {"dataset": "d", "modality": "CT", "labels": LABELS, "cases": [case]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    words = ["--masks", str(masks), "--datalist", str(tmp_path / "list.json"), "--format", "rtstruct"]
    words += ["--output", str(output), "--measures", str(tmp_path / "volumes.csv")]
    table = "case,label,volume_ml,longest_mm,perpendicular_mm\n"
    for mask, volumes, left in (
        (make_mask(), "p1,tumour,1.5,3.0,2.0\n", {"p1.dcm", "p1_measures.dcm"}),
        (make_mask(), "", {"p1.dcm"}),
        (0 * make_mask(), "", set()),
    ):
        write_nifti(masks / "p1.nii.gz", mask, affine_of(AXES["axial"]))
        (tmp_path / "volumes.csv").write_text(table + volumes)
        main(words)
        assert {path.name for path in output.iterdir()} == left
