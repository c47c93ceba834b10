"""4D-Lung trees become data lists whose label maps are the contoured shapes, visit by visit."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom.series import group_headers, read_volume
from monai_ext.data.images import read_geometry, read_image, read_label
from monai_ext.data.indexing.four_d_lung import gate_of
from monai_ext.data.pairs import pair_with_reference
from monai_ext.data.phantoms.dicom import write_ct_series, write_rtstruct
from monai_ext.errors import UserError
from phantoms.four_d_lung import write_phantom_4d_lung

SHAPE, AFFINE = (48, 40, 8), np.diag([-2.0, -2.5, 4.0, 1.0])
CIRCLE = 2 * np.pi * np.arange(360) / 360
FIRST, SECOND = datetime.date(2000, 11, 27), datetime.date(2001, 1, 2)


def centre_of(visit: int) -> np.ndarray:
    return np.array([-47.0 + 3 * visit, -50.0, 16.0])


def sphere(points: np.ndarray, visit: int) -> np.ndarray:
    """Whether points [N, 3] in RAS mm lie in the tumour."""
    return np.linalg.norm(points - centre_of(visit), axis=1) < 18 + visit


def outlines(visit: int) -> list[np.ndarray]:
    (x, y, z), radius = centre_of(visit), 18 + visit
    found = []
    for height in np.arange(SHAPE[2]) * 4.0:
        if abs(height - z) < radius:
            r = np.sqrt(radius**2 - (height - z) ** 2)
            found.append(np.stack([-x - r * np.cos(CIRCLE), -y - r * np.sin(CIRCLE), 0 * CIRCLE + height], axis=1))
    return found


def write_visit(root: Path, date: datetime.date, visit: int, gate: int = 0, **options: Any) -> tuple[Path, Path]:
    """Write CT and RTSTRUCT as the archive lays them out; return their folders."""
    patient = options.pop("patient_id", "119_HM10395")
    rois = options.pop("rois", {"Cord_c00": [], f"Tumor_c{gate:02d}": outlines(visit)})
    study = root / patient / f"{date:%m-%d-%Y}-NA-p4-{visit}"
    name = f"P4^P119^S300^I0{visit}, Gated, {gate}.0%A"
    values = np.random.default_rng(visit).integers(-1000, 400, SHAPE)
    ct, rt = study / f"1.0-Gated {gate}.0A-1", study / f"1.0-Gated {gate}.0A-423"
    defaults = {"patient_id": patient, "study_date": date, "series_description": name, "reverse": visit % 2 == 0}
    files = write_ct_series(ct, values, AFFINE, **{**defaults, **options})
    write_rtstruct(rt / "1-1.dcm", files, rois, shuffle=True, series_description=name)
    return ct, rt


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive") / "4D-Lung"
    for gate in (0, 50):
        write_visit(root, FIRST, 1, gate)
        write_visit(root, SECOND, 2, gate)
    return root


@pytest.fixture
def tree(archive: Path, tmp_path: Path) -> Path:
    """A copy of the archive, to change."""
    return shutil.copytree(archive, tmp_path / "4D-Lung")


def test_visits_are_in_the_order_of_time(tree: Path, indexed: Callable[..., Any]) -> None:
    datalist, report = indexed("4d_lung", tree)
    assert sorted(path.name for path in (tree / "119_HM10395").iterdir())[0].startswith("01-02-2001")  # not so by name
    assert [(case.case, case.visit, case.extra["gate"]) for case in datalist.cases] == [
        ("119_HM10395_2000-11-27_gate00", FIRST, 0),
        ("119_HM10395_2001-01-02_gate00", SECOND, 0),
    ]
    assert "2 RTSTRUCT files are of other gates; --gates 50 would take them" in report
    (pair,) = pair_with_reference(datalist)
    assert "2000-11-27" in str(pair["reference_image"])


def test_label_maps_are_the_contoured_shapes(tree: Path, indexed: Callable[..., Any]) -> None:
    for visit, case in enumerate(indexed("4d_lung", tree)[0].cases, start=1):
        label, geometry = read_label(case.label), read_geometry(case.label)
        places = np.indices(SHAPE).reshape(3, -1).T @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
        expected = sphere(places, visit).reshape(SHAPE)
        assert 2 * (expected & (label == 1)).sum() / (expected.sum() + label.sum()) > 0.99


def test_images_keep_values_and_geometry(tree: Path, indexed: Callable[..., Any]) -> None:
    for case in indexed("4d_lung", tree)[0].cases:
        origin = case.extra["dicom_series"]
        (series,) = (one for one in group_headers(tree.parent / origin["folder"]) if one.series_uid == origin["uid"])
        volume = read_volume(series)
        np.testing.assert_array_equal(read_image(case.image), volume.array)
        np.testing.assert_allclose(read_geometry(case.image).affine, volume.affine, atol=1e-4)


@pytest.mark.slow
def test_gates_and_rois_can_be_chosen(tree: Path, indexed: Callable[..., Any]) -> None:
    datalist, _ = indexed("4d_lung", tree, gates=(0, 50))
    assert [case.extra["gate"] for case in datalist.cases] == [0, 50, 0, 50]
    datalist, _ = indexed("4d_lung", tree, roi=("tumor_c50",), gates=(50,))
    assert len(datalist.cases) == 2
    with pytest.raises(
        UserError, match=r"no ROI with contours is called 'heart' \(there are: 'Cord_c00', 'Tumor_c00'\)"
    ):
        indexed("4d_lung", tree, roi=("heart",))


def test_all_files_in_one_folder(tree: Path, indexed: Callable[..., Any]) -> None:
    mixed = tree.parent / "mixed"
    mixed.mkdir()
    for number, path in enumerate(sorted(tree.rglob("*.dcm"))):
        shutil.copy(path, mixed / f"IM{number:04d}")
    names = [case.case for case in indexed("4d_lung", tree)[0].cases]
    assert [case.case for case in indexed("4d_lung", mixed)[0].cases] == names


@pytest.mark.slow
def test_a_second_run_converts_what_has_changed(tree: Path, indexed: Callable[..., Any]) -> None:
    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tree.parent / "list_files").iterdir()}

    indexed("4d_lung", tree)
    before = written()
    indexed("4d_lung", tree)
    assert written() == before
    contours = next(tree.glob("*/11-27-2000*/*423/1-1.dcm"))
    os.utime(contours, ns=(1, 1))
    indexed("4d_lung", tree)
    changed = {name for name, time in written().items() if time != before[name]}
    assert changed == {"119_HM10395_2000-11-27_gate00_label.nii.gz"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"drop": (3,)}, "1 slice is missing: 8.00 mm between"),
        ({"rois": {"Cord_c00": outlines(1)}}, "no ROI with contours is called"),
        ({"rois": {"Tumor_c00": [outline + (0, 0, 100) for outline in outlines(1)]}}, "outside the 8 slices"),
        ({"rois": {"Tumor_c00": [outline + (500, 0, 0) for outline in outlines(1)]}}, "encloses no voxel"),
    ],
)
def test_what_cannot_be_used_is_named(tree: Path, indexed: Callable[..., Any], options: Any, why: str) -> None:
    write_visit(tree, FIRST, 3, patient_id="120_HM10395", **options)
    datalist, report = indexed("4d_lung", tree)
    assert {case.patient for case in datalist.cases} == {"119_HM10395"}
    assert why in report


def test_contours_without_their_ct_are_named(tree: Path, indexed: Callable[..., Any]) -> None:
    ct, _ = write_visit(tree, FIRST, 3, patient_id="120_HM10395")
    shutil.rmtree(ct)
    assert "refers to a CT series that is not here" in indexed("4d_lung", tree)[1]


def test_a_ct_without_contours_is_named(tree: Path, indexed: Callable[..., Any]) -> None:
    for path in tree.glob("*/01-02-2001*/*423/1-1.dcm"):
        path.unlink()
    datalist, report = indexed("4d_lung", tree)
    assert [case.visit for case in datalist.cases] == [FIRST]
    assert "CT of a gate that no RTSTRUCT here contours" in report
    assert "skipped: 1" in report  # gate 50 was not asked for


def test_what_roi_finds_keeps_the_name_of_the_card(tree: Path, indexed: Callable[..., Any]) -> None:
    assert "is listed as 'tumour'" in indexed("4d_lung", tree, roi=("Tumor",))[1]
    assert indexed("4d_lung", tree, roi=("lesion=Tumor",))[0].labels == {"lesion": 1}


def test_contours_find_their_series_by_its_slices(tree: Path, indexed: Callable[..., Any]) -> None:
    for path in tree.rglob("*423/1-1.dcm"):
        dataset = pydicom.dcmread(path)
        del dataset.ReferencedFrameOfReferenceSequence
        dataset.save_as(path)
    assert len(indexed("4d_lung", tree)[0].cases) == 2


def test_dates_of_folders_serve_where_files_have_none(tree: Path, indexed: Callable[..., Any]) -> None:
    for path in tree.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for keyword in ("StudyDate", "SeriesDate", "StructureSetDate"):
            if keyword in dataset:
                delattr(dataset, keyword)
        dataset.save_as(path)
    assert [case.visit for case in indexed("4d_lung", tree)[0].cases] == [FIRST, SECOND]


@pytest.mark.slow
def test_two_studies_on_a_day(tree: Path, indexed: Callable[..., Any]) -> None:
    for visit in (3, 4):
        write_visit(tree, FIRST, visit, patient_id="118_HM10395", study_uid=f"1.2.{visit}")
    datalist, report = indexed("4d_lung", tree)
    assert [case.case for case in datalist.cases if case.patient == "118_HM10395"] == [
        "118_HM10395_2000-11-27_1_gate00",
        "118_HM10395_2000-11-27_2_gate00",
    ]
    assert "118_HM10395 has 2 studies on 2000-11-27" in report
    assert "P2SAM's authors leave this patient out" in report


def test_a_folder_without_contours_is_not_the_download(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    write_ct_series(tmp_path / "ct", np.zeros(SHAPE), AFFINE)
    with pytest.raises(UserError, match="nothing there looks like 4D-Lung"):
        indexed("4d_lung", tmp_path / "ct")


@pytest.mark.slow
def test_the_phantom_download(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    datalist, report = indexed("4d_lung", write_phantom_4d_lung(tmp_path / "4D-Lung"))
    sizes = [int(read_label(case.label).sum()) for case in datalist.cases]
    assert len(sizes) == 2
    assert sizes[1] > 1.2 * sizes[0] > 300  # it grows
    assert "skipped: nothing" in report


@pytest.mark.slow
def test_a_second_rtstruct_of_a_gate_is_not_passed_over(tree: Path, indexed: Callable[..., Any]) -> None:
    ct, rt = write_visit(tree, FIRST, 3, patient_id="120_HM10395")
    files, name = sorted(ct.iterdir()), "P4^P119^S300^I03, Gated, 0.0%A"
    write_rtstruct(rt / "1-2.dcm", files, {"Tumor_c00": outlines(3)}, series_description=name)
    assert "1-2.dcm: Tumor_c00 of the same series is taken from" in indexed("4d_lung", tree)[1]
    write_rtstruct(rt / "1-2.dcm", files, {"Tumor_c00": outlines(1)}, series_description=name)
    datalist, report = indexed("4d_lung", tree)
    assert {case.patient for case in datalist.cases} == {"119_HM10395"}
    assert "1-1.dcm and" in report
    assert "draw 'Tumor_c00' differently on one series" in report


@pytest.mark.parametrize(
    ("description", "gate"),
    [
        ("P4^P107^S300^I00003, Gated, 0.0%A", 0),
        ("P4P115S302I00003 Gated 50.0A", 50),
        ("gated 90%", 90),
        ("P4^P108^S101^I00002", None),
    ],
)
def test_gates_in_descriptions(description: str, gate: int | None) -> None:
    assert gate_of(description) == gate
