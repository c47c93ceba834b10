"""CHAOS trees: pictures on their slices, the right way up, organs by grey ranges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from monai_ext.data.cards import load_card
from monai_ext.data.images import read_geometry, read_label
from monai_ext.data.indexing.chaos import grey_to_label
from monai_ext.data.phantoms.dicom import write_ct_series
from monai_ext.errors import UserError

SHAPE = (18, 14, 5)
AFFINE = np.array([[-1.6, 0.1, 0, 10], [-0.1, -1.6, 0, 20], [0, 0, 7.7, -60], [0, 0, 0, 1.0]])
GREYS = {1: 63, 2: 126, 3: 189, 4: 252}


def anatomy() -> np.ndarray:
    """Liver on the patient's right, spleen on the left, one kidney a slice: no symmetry hides a flip."""
    label = np.zeros(SHAPE, np.uint8)
    label[1:8, 2:9, 1:4] = 1
    label[4:7, 10:13, 2] = 2
    label[12:14, 10:12, 3] = 3
    label[14:17, 4:8, 3:5] = 4
    return label


def write_patient(
    root: Path, number: int, sequence: str = "T2SPIR", *, reverse: bool = False, prefix: str = "IMG-0002-"
) -> Path:
    """Write a patient with pictures named as the DICOM files; each file has UIDs of its own."""
    folder = root / "MR" / str(number) / sequence
    dicom = folder / "DICOM_anon" / ("InPhase" if sequence == "T1DUAL" else "")
    label = anatomy()
    values = np.where(label > 0, 300, 100) + np.random.default_rng(number).integers(0, 50, SHAPE)
    files = write_ct_series(dicom, values, AFFINE, modality="MR", intercept=0, reverse=reverse)
    (folder / "Ground").mkdir()
    for k, path in enumerate(files):
        instance = int(path.stem.split("-")[1])
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = f"1.2.{number}.{k}"
        dataset.save_as(path)
        path.rename(path.with_name(f"IMG-0002-{instance:05d}.dcm"))
        grey = np.select([label[:, :, k] == value for value in GREYS], list(GREYS.values())).astype(np.uint8)
        Image.fromarray(grey.T).save(folder / "Ground" / f"{prefix}{instance:05d}.png")
    return folder


def expected(path: str) -> np.ndarray:
    """The anatomy by place in the patient, whatever the order of the file's slices."""
    geometry = read_geometry(path)
    to_anatomy = np.linalg.inv(AFFINE) @ geometry.affine
    voxels = np.rint(to_anatomy[:3, :3] @ np.indices(SHAPE).reshape(3, -1) + to_anatomy[:3, 3:]).astype(int)
    return anatomy()[tuple(voxels)].reshape(SHAPE)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("prefix", ["IMG-0002-", "liver_GT_"])
@pytest.mark.parametrize(("dataset", "sequence"), [("chaos_t1", "T1DUAL"), ("chaos_t2", "T2SPIR")])
def test_pictures_lie_on_their_slices(
    tmp_path: Path, indexed: Callable[..., Any], dataset: str, sequence: str, prefix: str, reverse: bool
) -> None:
    write_patient(tmp_path / "Train_Sets", 2, sequence, reverse=reverse, prefix=prefix)
    datalist, report = indexed(dataset, tmp_path)
    (case,) = datalist.cases
    assert (case.case, case.patient, case.fold) == (f"chaos02_{sequence}", "chaos02", 0)
    np.testing.assert_array_equal(read_label(case.label), expected(case.label))
    np.testing.assert_allclose(read_geometry(case.image).affine, AFFINE, atol=1e-4)
    assert "skipped: nothing" in report


def test_folds_and_order_of_patients(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    for number in (39, 8, 1):
        write_patient(tmp_path, number)
    datalist, _ = indexed("chaos_t2", tmp_path)
    assert [(case.patient, case.fold) for case in datalist.cases] == [("chaos01", 0), ("chaos08", 1), ("chaos39", 4)]


def test_a_missing_organ_does_not_shift_the_others(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    folder = write_patient(tmp_path, 1)
    for path in (folder / "Ground").iterdir():
        grey = np.array(Image.open(path))
        Image.fromarray(np.where(grey == 63, 0, grey)).save(path)
    (case,) = indexed("chaos_t2", tmp_path)[0].cases
    assert set(np.unique(read_label(case.label))) == {0, 2, 3, 4}


def test_what_cannot_be_used_is_named(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    write_patient(tmp_path, 1)
    for path in (write_patient(tmp_path, 2) / "Ground").iterdir():
        path.unlink()
    next((write_patient(tmp_path, 3) / "Ground").iterdir()).unlink()
    next((write_patient(tmp_path, 5) / "DICOM_anon").glob("*00003.dcm")).unlink()
    shuffled = write_patient(tmp_path, 8, prefix="other")
    for name in ("IMG-0002-00002.dcm", "IMG-0002-00004.dcm"):
        (shuffled / "DICOM_anon" / name).rename(shuffled / "DICOM_anon" / f"X{name[::-1]}.dcm")
    Image.fromarray(np.full((14, 18), 90, np.uint8)).save(
        next((write_patient(tmp_path, 10) / "Ground").glob("*00001.png"))
    )
    Image.fromarray(np.zeros((18, 14), np.uint8)).save(
        next((write_patient(tmp_path, 13) / "Ground").glob("*00001.png"))
    )
    datalist, report = indexed("chaos_t2", tmp_path)
    assert [case.patient for case in datalist.cases] == ["chaos01"]
    for why in (
        "there is no ground truth",
        "holds 4 pictures for 5 slices",
        "1 slice is missing",
        "do not follow the slices through the body",
        "grey value 90, which stands for no organ",
        "is 14 x 18 pixels, its slice 18 x 14",
    ):
        assert why in report


def test_grey_ranges_include_their_ends() -> None:
    card = load_card("chaos_t2")
    ranges = {card.labels[name]: bounds for name, bounds in card.grey_ranges.items()}
    grey = np.array([[0, 55, 70, 110, 135, 175, 200, 240, 255]])
    assert grey_to_label(grey, ranges, Path("a.png")).tolist() == [[0, 1, 1, 2, 2, 3, 3, 4, 4]]
    for unknown in (1, 54, 71, 109, 136, 174, 201, 239):
        with pytest.raises(UserError, match=f"a.png: holds the grey value {unknown}"):
            grey_to_label(np.array([[unknown]]), ranges, Path("a.png"))


def test_another_folder_is_not_the_download(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="nothing there looks like CHAOS"):
        indexed("chaos_t1", tmp_path)
