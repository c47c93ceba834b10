"""Volumes from DICOM: every voxel comes back at its place and with its value, whatever the files are called."""

from __future__ import annotations

import datetime
import shutil

import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom.reading import looks_like_dicom, read_dataset
from monai_ext.data.dicom.series import NOT_DICOM, group_headers, parse_date, read_header, read_volume
from monai_ext.data.phantoms.dicom import write_ct_series
from monai_ext.errors import UserError

SHAPE = (7, 5, 6)
TURN = np.linalg.qr(np.array([[0.9, 0.3, -0.2], [-0.2, 0.8, 0.4], [0.3, -0.3, 0.9]]))[0]


def affine_of(directions, spacing=(0.7, 1.1, 2.5), origin=(-31.25, 17.5, 90.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, dtype=float) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


GRIDS = {
    "axial": affine_of(np.diag([-1, -1, 1])),
    "axial, feet first": affine_of(np.diag([-1, -1, -1])),
    "mirrored": affine_of(np.diag([1, -1, 1])),
    "coronal": affine_of([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal": affine_of([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "oblique": affine_of(TURN),
}


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 1500, SHAPE)


def only_series(folder):
    (series,) = group_headers(folder)
    return series


def values_by_place(array, affine):
    """Value of every voxel by its place in the patient, in micrometres."""
    places = affine[:3, :3] @ np.indices(array.shape).reshape(3, -1) + affine[:3, 3:]
    return dict(zip(map(tuple, np.rint(places.T * 100).astype(int)), array.ravel().tolist(), strict=True))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_voxel_keeps_value_and_place(tmp_path, array, grid, reverse):
    write_ct_series(tmp_path, array, GRIDS[grid], reverse=reverse)
    volume = read_volume(only_series(tmp_path))
    assert volume.array.shape == SHAPE
    assert volume.array.dtype == np.int16
    assert values_by_place(volume.array, volume.affine) == values_by_place(array, GRIDS[grid])


@pytest.mark.parametrize("grid", GRIDS)
def test_affine_is_exact(tmp_path, array, grid):
    write_ct_series(tmp_path, array, GRIDS[grid])
    affine = read_volume(only_series(tmp_path)).affine
    expected = GRIDS[grid].copy()
    if np.linalg.det(affine_of(np.diag([-1, -1, 1]))[:3, :3]) * np.linalg.det(expected[:3, :3]) < 0:
        expected[:3, 3] += (SHAPE[2] - 1) * expected[:3, 2]  # slices run along rows x columns
        expected[:3, 2] *= -1
    np.testing.assert_allclose(affine, expected, atol=1e-6)


def test_row_spacing_comes_first(tmp_path, array):
    (path, *_) = write_ct_series(tmp_path, array, GRIDS["axial"])
    assert list(pydicom.dcmread(path).PixelSpacing) == [1.1, 0.7]
    np.testing.assert_allclose(np.linalg.norm(read_volume(only_series(tmp_path)).affine[:3, :2], axis=0), [0.7, 1.1])


def test_files_are_in_the_order_of_slices_whatever_their_names(tmp_path, array):
    files = write_ct_series(tmp_path, array, GRIDS["axial"])
    named = [path.rename(path.with_name(name)) for path, name in zip(files, "cafebd", strict=True)]
    assert read_volume(only_series(tmp_path)).files == tuple(named)


@pytest.mark.parametrize("signed", [False, True])
def test_rescaled_values(tmp_path, array, signed):
    write_ct_series(tmp_path, array, GRIDS["axial"], signed=signed, slope=0.5, intercept=-1000.5)
    volume = read_volume(only_series(tmp_path))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array)


def test_values_beyond_int16_are_kept(tmp_path):
    array = np.arange(2 * 3 * 2).reshape(2, 3, 2) * 5000
    write_ct_series(tmp_path, array, GRIDS["axial"])
    np.testing.assert_array_equal(read_volume(only_series(tmp_path)).array, array)


def test_white_is_high(tmp_path, array):
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    write_ct_series(tmp_path / "mr", array + 1000, GRIDS["axial"], modality="MR", intercept=0, elements=inverted)
    write_ct_series(tmp_path / "ct", array, GRIDS["axial"], elements=inverted)
    np.testing.assert_array_equal(read_volume(only_series(tmp_path / "mr")).array, 65535.0 - (array + 1000))
    np.testing.assert_array_equal(read_volume(only_series(tmp_path / "ct")).array, array)  # HU stay HU


def test_one_slice(tmp_path, array):
    write_ct_series(tmp_path, array[:, :, :1], GRIDS["oblique"])
    volume = read_volume(only_series(tmp_path))
    assert volume.array.shape == (7, 5, 1)
    np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, 2]), 2.5)


def test_several_series_in_one_folder(tmp_path, array):
    for number in (1, 2):
        write_ct_series(tmp_path, array + number, GRIDS["axial"], series_number=number)
    (tmp_path / "notes.txt").write_text("no DICOM")
    found = group_headers(tmp_path)
    assert [len(series.slices) for series in found] == [6, 6]
    assert found.skipped == [(tmp_path / "notes.txt", NOT_DICOM)]
    np.testing.assert_array_equal([read_volume(series).array for series in found], [array + 1, array + 2])


def test_numbered_folders_are_asked_once(tmp_path, array):
    write_ct_series(tmp_path / "one", array, GRIDS["axial"], series_description="wanted")
    write_ct_series(tmp_path / "two", array, GRIDS["axial"], series_description="other")
    write_ct_series(tmp_path / "mixed", array, GRIDS["axial"], series_description="wanted", series_number=3)
    write_ct_series(tmp_path / "mixed", array, GRIDS["axial"], series_description="other", series_number=4)
    asked = []

    def keep(header):
        asked.append(header.path.parent.name)
        return header.series_description == "wanted"

    found = group_headers(tmp_path, keep)
    assert sum(len(series.slices) for series in found) == 12
    assert sorted(asked) == ["mixed"] * 12 + ["one", "two"]


def test_header_of_sloppy_files(tmp_path, array):
    (path, *_) = write_ct_series(
        tmp_path, array, GRIDS["axial"], frame_of_reference_uid="", study_date=None, elements={"PatientID": None}
    )
    dataset = pydicom.dcmread(path)
    dataset.add_new("SliceThickness", "DS", "")
    dataset.AcquisitionDate = "20010203"
    del dataset.Modality
    dataset.save_as(path)
    header = read_header(path)
    assert (header.frame_of_reference_uid, header.slice_thickness, header.modality) == ("", None, "")
    assert header.study_date == datetime.date(2001, 2, 3)


@pytest.mark.parametrize(("text", "date"), [("20001127", (2000, 11, 27)), ("2000.11.27", (2000, 11, 27))])
def test_dates(text, date):
    assert parse_date(text) == datetime.date(*date)


@pytest.mark.parametrize("text", ["", "11-27-2000", "20001341", "2000"])
def test_no_dates(text):
    assert parse_date(text) is None


@pytest.mark.parametrize("preamble", [False, True])
def test_files_without_meta_information(tmp_path, array, preamble):
    for path in write_ct_series(tmp_path, array, GRIDS["axial"]):
        dataset = pydicom.dcmread(path)
        dataset.file_meta, dataset.preamble = pydicom.dataset.FileMetaDataset(), preamble and bytes(128)
        dataset.save_as(path, implicit_vr=True, little_endian=True)
        assert looks_like_dicom(path)
    np.testing.assert_array_equal(read_volume(only_series(tmp_path)).array, array)


def test_what_is_no_dicom_is_skipped(tmp_path, array):
    (tmp_path / "damaged.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(256)))
    (tmp_path / "text.dcm").write_text("some text, " * 100)
    (tmp_path / ".hidden.dcm").write_text("not even looked at")
    found = group_headers(tmp_path)
    assert not found
    skipped = {path.name: why for path, why in found.skipped}
    assert skipped["text.dcm"] == NOT_DICOM
    assert "damaged" in skipped.pop("damaged.dcm")
    assert list(skipped) == ["text.dcm"]


def test_truncated_pixels(tmp_path, array):
    files = write_ct_series(tmp_path, array, GRIDS["axial"])
    files[3].write_bytes(files[3].read_bytes()[:-20])
    with pytest.raises(UserError, match=r"1-04\.dcm: damaged.*copy or download it again"):
        read_volume(only_series(tmp_path))


def test_colour_is_refused(tmp_path, array):
    write_ct_series(tmp_path, array, GRIDS["axial"], elements={"PhotometricInterpretation": "RGB"})
    with pytest.raises(UserError, match="holds RGB pixels"):
        read_volume(only_series(tmp_path))


def test_compression_without_a_decoder_names_the_plugin(tmp_path, array):
    files = write_ct_series(tmp_path, array, GRIDS["axial"])
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"  # JPEG lossless: only by a plugin
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    with pytest.raises(UserError, match=r"JPEG Lossless.*pip install pylibjpeg"):
        read_volume(only_series(tmp_path))


def test_missing_extra_is_named(tmp_path, array, monkeypatch):
    (path, *_) = write_ct_series(tmp_path, array, GRIDS["axial"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'monai-ext\[dicom\]'"):
        read_dataset(path)


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        group_headers(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such file"):
        read_dataset(tmp_path / "nothing.dcm")


def test_links_in_circles_end(tmp_path, array):
    write_ct_series(tmp_path / "ct", array, GRIDS["axial"])
    (tmp_path / "ct" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(only_series(tmp_path).slices) == 6


def test_magic_bytes(tmp_path, array):
    (path, *_) = write_ct_series(tmp_path, array, GRIDS["axial"])
    odd = tmp_path / "image.xyz"
    shutil.copy(path, odd)
    assert looks_like_dicom(odd)
    assert not looks_like_dicom(__file__)


def test_copies_count_once(tmp_path, array):
    files = write_ct_series(tmp_path / "ct", array, GRIDS["axial"])
    shutil.copytree(tmp_path / "ct", tmp_path / "more")
    found = group_headers(tmp_path)
    assert [len(series.slices) for series in found] == [6]
    assert sorted(found.copies)[0] == (tmp_path / "more" / files[0].name, files[0])


def test_files_of_one_sop_instance_uid_and_other_contents_are_no_copies(tmp_path, array):
    for path in write_ct_series(tmp_path, array, GRIDS["axial"]):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = "1.2.3"
        dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(only_series(tmp_path)).array, array)


def test_what_shares_a_series_uid_is_told_apart(tmp_path, array):
    for number, (modality, day) in enumerate([("CT", 1), ("MR", 1), ("CT", 9)]):
        own = {"modality": modality, "study_date": datetime.date(2020, 1, day), "series_uid": "1.2.3"}
        write_ct_series(tmp_path, array, GRIDS["axial"], series_number=number, study_uid="1.2.4", **own)
    found = group_headers(tmp_path)
    assert [len(series.slices) for series in found] == [6, 6, 6]
    (note,) = found.notes
    assert "3 image series share the SeriesInstanceUID 1.2.3 (2020-01-01, 2020-01-01, 2020-01-09)" in note


def test_a_series_past_midnight_is_one(tmp_path, array):
    for k, path in enumerate(write_ct_series(tmp_path, array, GRIDS["axial"], study_date=None)):
        dataset = pydicom.dcmread(path)
        dataset.AcquisitionDate = "20010203" if k < 3 else "20010204"
        dataset.save_as(path)
    assert len(only_series(tmp_path).slices) == 6


@pytest.mark.parametrize("alone", [False, True])
def test_a_localizer_among_other_slices_is_skipped(tmp_path, array, alone):
    files = write_ct_series(tmp_path, array, GRIDS["axial"])
    scout = pydicom.dcmread(files[0])
    scout.ImageType, scout.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [1, 0, 0, 0, 0, -1]
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    scout.save_as(tmp_path / "scout.dcm")
    for file in files if alone else []:
        file.unlink()
    found = group_headers(tmp_path)
    assert [len(series.slices) for series in found] == [1 if alone else SHAPE[2]]
    why = "a localizer (ImageType) among the slices of a series"
    assert found.skipped == ([] if alone else [(tmp_path / "scout.dcm", why)])
    read_volume(found[0])
