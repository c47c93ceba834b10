"""SEG frames land where they say, and nowhere else."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom.segmentation import read_segmentation, segment_mask
from monai_ext.data.dicom.series import group_headers
from monai_ext.data.phantoms.dicom import write_ct_series
from monai_ext.errors import UserError
from phantoms.seg import write_seg

SHAPE = (12, 10, 8)
TURN = np.linalg.qr(np.array([[0.9, 0.3, -0.2], [-0.2, 0.8, 0.4], [0.3, -0.3, 0.9]]))[0]
POSITIONS, REFERENCES = "PlanePositionSequence", "DerivationImageSequence"


def affine_of(directions):
    affine = np.eye(4)
    affine[:3, :3] = directions @ np.diag([0.8, 1.3, 3.0])
    affine[:3, 3] = (-20.0, 35.0, 120.0)
    return affine


OBLIQUE = affine_of(TURN if np.linalg.det(TURN) > 0 else TURN * (1, 1, -1))


@pytest.fixture
def masks():
    x, y, z = np.indices(SHAPE)
    tumour = ((x - 4) / 3.5) ** 2 + ((y - 5) / 2.5) ** 2 < 1
    tumour &= (z == 2) | (z == 3) | (z == 5)
    return {"Lung": ~tumour & (z > 0), "GTV-1": tumour, "nowhere": np.zeros(SHAPE, dtype=bool)}


@pytest.fixture
def write(tmp_path, masks):
    """Write a CT against the order of its names and its SEG; return SEG path and series."""

    def written(**options):
        files = write_ct_series(tmp_path / "ct", np.zeros(SHAPE), OBLIQUE, reverse=True)
        path = write_seg(tmp_path / "seg.dcm", files, masks, **options)
        (series,) = group_headers(tmp_path / "ct")
        return path, series

    return written


def edit_frames(path, change):
    """Apply ``change`` to the header of every frame."""
    dataset = pydicom.dcmread(path)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        change(groups)
    dataset.save_as(path)


def mask_of(path, series, name="GTV-1"):
    segmentation = read_segmentation(path)
    (number,) = segmentation.find(name)
    return segment_mask(segmentation, number, series)


@pytest.mark.parametrize("options", [{}, {"fractional": True}, {"omit_empty_frames": False}])
def test_segments_keep_their_voxels(write, masks, options):
    path, series = write(**options)
    for name in ("GTV-1", "Lung"):
        np.testing.assert_array_equal(mask_of(path, series, name), masks[name])


def test_empty_frames_are_absent(write):
    path, series = write()
    frames = [frame for frame in read_segmentation(path).frames if frame.segment == 2]
    assert len(frames) == 3  # of 8 slices
    assert not mask_of(path, series, "nowhere").any()


def test_frames_in_another_order(write, masks):
    path, series = write()
    dataset = pydicom.dcmread(path)
    pixels, order = dataset.pixel_array, np.random.default_rng(0).permutation(dataset.NumberOfFrames)
    headers = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [headers[i] for i in order]
    dataset.PixelData = pydicom.pixels.pack_bits(pixels[order].ravel())
    dataset.save_as(path)
    np.testing.assert_array_equal(mask_of(path, series), masks["GTV-1"])


def test_references_serve_where_positions_are_absent(write, masks):
    path, series = write()
    edit_frames(path, lambda groups: groups.pop(POSITIONS, None))
    np.testing.assert_array_equal(mask_of(path, series), masks["GTV-1"])


def test_positions_serve_where_references_are_absent(write, masks):
    path, series = write()
    edit_frames(path, lambda groups: groups.pop(REFERENCES, None))
    np.testing.assert_array_equal(mask_of(path, series), masks["GTV-1"])


def test_there_is_no_default_slice(write):
    path, series = write()

    def strip(groups):
        groups.pop(POSITIONS, None)
        groups.pop(REFERENCES, None)

    edit_frames(path, strip)
    with pytest.raises(
        UserError, match=r"seg\.dcm: frame \d+ of segment 'GTV-1' says neither its position nor its slice"
    ):
        mask_of(path, series)


def test_unknown_slices_are_an_error(write):
    path, series = write()

    def rename(groups):
        groups.pop(POSITIONS, None)
        groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"

    edit_frames(path, rename)
    with pytest.raises(UserError, match="names 1 slices, 0 of them of this series"):
        mask_of(path, series)


def test_contradictions_are_an_error(write):
    path, series = write()
    other = series.slices[0].sop_instance_uid

    def rename(groups):
        groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = other

    edit_frames(path, rename)
    with pytest.raises(UserError, match="names one slice and lies on another one"):
        mask_of(path, series)


def test_a_grid_of_its_own_is_placed_by_positions(tmp_path, write, masks):
    _, series = write()
    crop = np.s_[1:9, 2:9, 2:7]
    affine = OBLIQUE.copy()
    affine[:3, 3] += affine[:3, :3] @ (1, 2, 2)
    files = write_ct_series(tmp_path / "crop", np.zeros((8, 7, 5)), affine, series_number=2)
    path = write_seg(tmp_path / "crop.dcm", files, {"GTV-1": masks["GTV-1"][crop]})
    np.testing.assert_array_equal(mask_of(path, series), masks["GTV-1"])


def test_a_turned_grid_is_placed_by_positions(tmp_path, write, masks):
    _, series = write()
    turned = OBLIQUE[:, [1, 2, 0, 3]]  # slices along X
    files = write_ct_series(tmp_path / "turned", np.zeros((10, 8, 12)), turned, series_number=2)
    path = write_seg(tmp_path / "turned.dcm", files, {"GTV-1": masks["GTV-1"].transpose(1, 2, 0)})
    np.testing.assert_array_equal(mask_of(path, series), masks["GTV-1"])


@pytest.mark.parametrize(
    ("shift", "message"), [((0.4, 0, 0), "0.40 voxels beside them"), ((0, 0, 40), "outside the series' slices")]
)
def test_foreign_grids_are_an_error(tmp_path, write, masks, shift, message):
    _, series = write()
    affine = OBLIQUE.copy()
    affine[:3, 3] += affine[:3, :3] @ shift
    files = write_ct_series(tmp_path / "other", np.zeros(SHAPE), affine, series_number=2)
    path = write_seg(tmp_path / "other.dcm", files, masks)
    with pytest.raises(UserError, match=message):
        mask_of(path, series)


def test_segments_are_found_by_label_or_description(write):
    path, _ = write()
    dataset = pydicom.dcmread(path)
    dataset.SegmentSequence[1].SegmentLabel = "Neoplasm, Primary"
    dataset.SegmentSequence[1].SegmentDescription = "GTV-1"
    dataset.save_as(path)
    segmentation = read_segmentation(path)
    assert segmentation.find("^gtv-1$") == [2]
    assert segmentation.find("neoplasm") == [2]
    assert segmentation.find("heart") == []


def test_an_image_is_no_segmentation(write):
    _, series = write()
    with pytest.raises(UserError, match="holds CT, not SEG"):
        read_segmentation(series.slices[0].path)


def test_missing_frames_of_pixels(write):
    path, series = write()
    dataset = pydicom.dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence.pop()
    dataset.save_as(path)
    with pytest.raises(UserError, match="frames of pixels"):
        mask_of(path, series)


def test_segments_of_one_number_are_refused(write):
    path, _ = write()
    dataset = pydicom.dcmread(path)
    dataset.SegmentSequence[1].SegmentNumber = 1
    dataset.save_as(path)
    with pytest.raises(UserError, match="2 segments share the SegmentNumber 1"):
        read_segmentation(path)


def test_frames_of_a_segment_without_name_are_named(write):
    path, _ = write()
    dataset = pydicom.dcmread(path)
    del dataset.SegmentSequence[1]
    dataset.save_as(path)
    assert read_segmentation(path).notes == (
        "frames of segment 2, which SegmentSequence does not name, are passed over",
    )


def test_a_slice_uid_that_stands_twice_places_nothing(write):
    path, series = write()
    edit_frames(path, lambda groups: groups.pop(POSITIONS, None))
    for header in series.slices:
        dataset = pydicom.dcmread(header.path)
        dataset.SOPInstanceUID = series.slices[0].sop_instance_uid
        dataset.save_as(header.path)
    (series,) = group_headers(series.key.parent)

    def rename(groups):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        source.ReferencedSOPInstanceUID = series.slices[0].sop_instance_uid

    edit_frames(path, rename)
    with pytest.raises(UserError, match="names 1 slices, 8 of them of this series; one is needed"):
        mask_of(path, series)
