"""What is united, what is drawn over what, and which drawings contradict each other."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom.drawing import drawings_of
from monai_ext.data.dicom.label_map import draw_label_map
from monai_ext.data.dicom.rtstruct_reader import read_structures
from monai_ext.data.dicom.segmentation import read_segmentation
from monai_ext.data.dicom.series import group_headers
from monai_ext.data.phantoms.dicom import write_ct_series, write_rtstruct
from monai_ext.errors import UserError
from phantoms.seg import write_seg

SHAPE = (20, 16, 7)


def box(x, y=3, z=2, size=4):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[x : x + size, y : y + size, z : z + 2] = True
    return mask


def outlines(x, y=3, z=2, size=4):
    """The outlines of a box, in LPS mm."""
    corners = np.array([[x, y], [x + size, y], [x + size, y + size], [x, y + size]]) - 0.5
    return [np.column_stack([corners, np.full(4, 3.0 * k)]) for k in (z, z + 1)]


@pytest.fixture
def files(tmp_path):
    return write_ct_series(tmp_path / "ct", np.zeros(SHAPE), np.diag([-1.0, -1.0, 3.0, 1.0]))


@pytest.fixture
def draw(tmp_path, files):
    """Write files and draw all that is in them: name -> value, later values over earlier ones."""

    def write(name, content):
        if name.startswith("seg"):
            return read_segmentation(write_seg(tmp_path / name, files, content, fractional="fraction" in name))
        return read_structures(write_rtstruct(tmp_path / name, files, content))

    def drawn(contents, values):
        (series,) = group_headers(tmp_path / "ct")
        drawings = [drawing for name, content in contents.items() for drawing in drawings_of(write(name, content))]
        pairs = sorted(((values[drawing.name], drawing) for drawing in drawings), key=lambda pair: pair[0])
        return draw_label_map(pairs, series)

    return drawn


@pytest.mark.slow
@pytest.mark.parametrize("names", [("seg1.dcm", "seg2.dcm"), ("rt1.dcm", "rt2.dcm"), ("seg1.dcm", "seg_fraction.dcm")])
def test_lesions_in_files_of_their_own_are_united(draw, names):
    first, second = (
        {"GTV": (outlines if name.startswith("rt") else box)(x)} for name, x in zip(names, (2, 11), strict=True)
    )
    label, (note,) = draw({names[0]: first, names[1]: second}, {"GTV": 1})
    np.testing.assert_array_equal(label, box(2) | box(11))
    assert all(name in note for name in names)
    assert note.endswith("are united")


def test_segments_of_one_label_in_one_file_are_united(draw, tmp_path, files):
    path = write_seg(tmp_path / "seg.dcm", files, {"GTV": box(2), "other": box(11)})
    dataset = pydicom.dcmread(path)
    dataset.SegmentSequence[1].SegmentLabel = "GTV"
    dataset.save_as(path)
    (series,) = group_headers(tmp_path / "ct")
    label, notes = draw_label_map([(1, drawing) for drawing in drawings_of(read_segmentation(path))], series)
    np.testing.assert_array_equal(label, box(2) | box(11))
    assert notes == ["'GTV' (number 1), 'GTV' (number 2) are united"]


@pytest.mark.parametrize("names", [("seg1.dcm", "seg2.dcm"), ("rt1.dcm", "rt2.dcm")])
def test_two_opinions_of_one_structure_are_refused(draw, names):
    make = outlines if names[0].startswith("rt") else box
    with pytest.raises(
        UserError, match=rf"{names[0]} and .*{names[1]} draw 'GTV' differently on one series \(24 voxels"
    ):
        draw({names[0]: {"GTV": make(2)}, names[1]: {"GTV": make(3)}}, {"GTV": 1})


def test_the_same_drawing_twice_is_one(draw):
    label, (note,) = draw({"rt1.dcm": {"GTV": outlines(2)}, "rt2.dcm": {"GTV": outlines(2)}}, {"GTV": 1})
    np.testing.assert_array_equal(label, box(2))
    assert "rt2.dcm: GTV of the same series is taken from" in note
    assert note.endswith("rt1.dcm, which has the same voxels")


def test_the_rtstruct_of_a_seg_may_differ_at_the_border(draw):
    label, (note,) = draw({"seg.dcm": {"GTV": box(2)}, "rt.dcm": {"GTV": outlines(3)}}, {"GTV": 1})
    np.testing.assert_array_equal(label, box(2))
    assert "which is a SEG; they differ by a voxel at the border at most" in note
    with pytest.raises(UserError, match="draw 'GTV' differently"):
        draw({"seg.dcm": {"GTV": box(2)}, "rt.dcm": {"GTV": outlines(4)}}, {"GTV": 1})


def test_later_structures_are_drawn_over_earlier_ones(draw):
    content = {"rt.dcm": {"inner": outlines(3, size=2, y=4), "outer": outlines(2)}}
    label, notes = draw(content, {"outer": 1, "inner": 2})
    np.testing.assert_array_equal(label == 2, box(3, size=2, y=4))
    assert notes == ["8 voxels belong to several structures; the one named last has them"]
    label, notes = draw(content, {"inner": 1, "outer": 2})
    assert set(np.unique(label)) == {0, 2}
    assert notes[1] == "'inner' is covered to the last voxel by structures named after it; name it last"


def test_slices_that_are_not_here_are_named(draw, tmp_path, files):
    path = write_rtstruct(tmp_path / "rt.dcm", files, {"GTV": outlines(2)})
    dataset = pydicom.dcmread(path)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    dataset.save_as(path)
    (series,) = group_headers(tmp_path / "ct")
    _, (note,) = draw_label_map([(1, drawing) for drawing in drawings_of(read_structures(path))], series)
    assert note.endswith("1 contours name slices that are not here; they lie where their coordinates say")


def test_contours_beside_the_slices_that_they_name_are_counted(draw, tmp_path, files):
    path = write_rtstruct(tmp_path / "rt.dcm", files, {"GTV": outlines(2)})
    dataset = pydicom.dcmread(path)
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        contour.ContourImageSequence[0].ReferencedSOPInstanceUID = pydicom.dcmread(files[-1]).SOPInstanceUID
    dataset.save_as(path)
    (series,) = group_headers(tmp_path / "ct")
    label, (note,) = draw_label_map([(1, drawing) for drawing in drawings_of(read_structures(path))], series)
    np.testing.assert_array_equal(label, box(2))
    assert note.endswith("2 contours lie on other slices than they name; they are where their coordinates say")
