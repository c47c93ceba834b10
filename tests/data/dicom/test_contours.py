"""Contours to voxels: against a scalar reference, against analytic shapes, and on every kind of grid."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_ext.data.dicom.contours import contour_mask, fill_polygons
from monai_ext.data.dicom.rtstruct_reader import Contour, read_structures
from monai_ext.data.phantoms.dicom import write_ct_series, write_rtstruct
from monai_ext.errors import UserError

SHAPE = (64, 56, 7)
SPACING = (0.8, 1.3, 3.0)
TURN = np.linalg.qr(np.array([[0.9, 0.3, -0.2], [-0.2, 0.8, 0.4], [0.3, -0.3, 0.9]]))[0]
DIRECTIONS = {
    "axial": np.diag([-1.0, -1.0, 1.0]),
    "sagittal": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "coronal": np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": TURN,
}
CIRCLE = 2 * np.pi * np.arange(720) / 720


def affine_of(name):
    affine = np.eye(4)
    affine[:3, :3] = DIRECTIONS[name] @ np.diag(SPACING)
    affine[:3, 3] = (-20.0, 35.0, 120.0)
    return affine


def to_lps(voxels, affine):
    points = np.asarray(voxels) @ affine[:3, :3].T + affine[:3, 3]
    return points * (-1, -1, 1)


def ellipse(k, centre=(30.2, 27.6), radii=(18.3, 11.1)):
    """Outline in voxels on slice k."""
    x, y = centre[0] + radii[0] * np.cos(CIRCLE), centre[1] + radii[1] * np.sin(CIRCLE)
    return np.stack([x, y, np.full(720, float(k))], axis=1)


def inside_ellipse(centre=(30.2, 27.6), radii=(18.3, 11.1)):
    x, y = np.indices(SHAPE[:2])
    return ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1


def drawn(outlines, name="axial"):
    affine = affine_of(name)
    return contour_mask([Contour(to_lps(outline, affine)) for outline in outlines], SHAPE, affine)


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def crossings(polygon, x, y):
    """Slow and obvious: how many edges cross the line of the pixel at or before its centre."""
    count = 0
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y0 <= y < y1) or (y1 <= y < y0):
            count += x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
    return count


def slow_fill(polygons, shape):
    count = [[sum(crossings(p, x, y) for p in polygons) for y in range(shape[1])] for x in range(shape[0])]
    return np.array(count) % 2 == 1


vertices = st.tuples(st.integers(-8, 72), st.integers(-8, 72)).map(lambda p: (p[0] / 4, p[1] / 4))  # some on centres


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(vertices, min_size=3, max_size=9).map(np.array), min_size=1, max_size=3))
def test_filling_is_even_odd_of_voxel_centres(polygons):
    np.testing.assert_array_equal(fill_polygons(polygons, (14, 12)), slow_fill(polygons, (14, 12)))


def test_centres_on_the_outline_belong_to_one_side():
    square = np.array([[2, 3], [6, 3], [6, 8], [2, 8]])
    expected = np.zeros((10, 10), dtype=bool)
    expected[2:6, 3:8] = True
    np.testing.assert_array_equal(fill_polygons([square], (10, 10)), expected)
    np.testing.assert_array_equal(fill_polygons([square[::-1] + 1e-6], (10, 10)), expected)  # noise changes nothing
    both = fill_polygons([square], (10, 10)).astype(int) + fill_polygons([square + (4, 0)], (10, 10))
    assert both.max() == 1  # neighbours share no voxel


def test_nothing_to_fill():
    assert not fill_polygons([], (4, 4)).any()
    assert not fill_polygons([np.array([[1.2, 1.2], [1.4, 1.2], [1.3, 1.4]])], (4, 4)).any()  # between centres


@pytest.mark.parametrize("name", DIRECTIONS)
def test_ellipse_on_every_orientation(name):
    mask, notes = drawn([ellipse(k) for k in (2, 3, 4)], name)
    assert notes == []
    assert mask.any(axis=(0, 1)).tolist() == [False, False, True, True, True, False, False]
    for k in (2, 3, 4):
        assert dice(mask[:, :, k], inside_ellipse()) > 0.995


def test_ring_and_two_blobs_on_a_slice():
    hole, other = ((30.2, 27.6), (7.0, 5.0)), ((56.0, 8.0), (4.5, 3.5))
    mask, _ = drawn([ellipse(3), ellipse(3, *hole), ellipse(3, *other)])
    assert dice(mask[:, :, 3], (inside_ellipse() & ~inside_ellipse(*hole)) | inside_ellipse(*other)) > 0.995
    assert not mask[30, 27, 3]


def test_island_in_a_hole():
    mask, _ = drawn([ellipse(3), ellipse(3, radii=(9, 8)), ellipse(3, radii=(4, 3))])
    assert mask[30, 27, 3]
    assert not mask[37, 27, 3]
    assert mask[45, 27, 3]


@pytest.mark.parametrize("direction", [1, -1])
def test_keyhole_equals_its_ring(direction):
    outer, inner = ellipse(3), ellipse(3, radii=(7, 5))[::direction]
    start = 0 if direction == 1 else 719
    inner = np.roll(inner, -start, axis=0)
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    np.testing.assert_array_equal(drawn([keyhole])[0], drawn([outer, inner])[0])


def test_what_has_no_inside_and_copies_are_passed_over():
    affine = affine_of("axial")
    outline = Contour(to_lps(ellipse(3), affine))
    point = Contour(to_lps([[1, 1, 50]], affine), "POINT")
    line = Contour(to_lps(ellipse(4)[:9], affine), "OPEN_PLANAR")
    mask, notes = contour_mask([outline, point, line, outline], SHAPE, affine)
    np.testing.assert_array_equal(mask, contour_mask([outline], SHAPE, affine)[0])
    assert notes == [
        "2 contours without an inside were passed over (OPEN_PLANAR, POINT)",
        "1 copies of outlines were passed over",
    ]


@pytest.mark.parametrize(("height", "k"), [(3.3, 3), (2.7, 3), (-0.4, 0), (6.4, 6)])
def test_outlines_go_to_the_nearest_slice(height, k):
    mask, _ = drawn([ellipse(height)])
    assert np.flatnonzero(mask.any(axis=(0, 1))).tolist() == [k]


@pytest.mark.parametrize(("height", "away"), [(-0.6, "1.8 mm"), (9.0, "9.0 mm")])
def test_outlines_beyond_the_slices_are_an_error(height, away):
    with pytest.raises(UserError, match=f"lies {away} outside the 7 slices"):
        drawn([ellipse(height)])


def test_outlines_across_slices_are_an_error():
    tilted = ellipse(3)
    tilted[:, 2] += np.linspace(-0.4, 0.4, 720)
    with pytest.raises(UserError, match="drawn across slices"):
        drawn([tilted])


def test_nearest_plane_wins_where_planes_are_denser_than_slices():
    mask, notes = drawn([ellipse(3.3), ellipse(3.0, radii=(6, 5)), ellipse(2.7)])
    np.testing.assert_array_equal(mask, drawn([ellipse(3, radii=(6, 5))])[0])
    assert notes == ["on 1 slices lie outlines of several planes; the nearest plane was taken"]


def test_gaps_are_named():
    assert drawn([ellipse(1), ellipse(4)])[1] == ["2 slices between outlined ones have no outline; they stay empty"]


@pytest.fixture
def written(tmp_path):
    """A CT and an RTSTRUCT of three ROIs whose contours are stored in another order."""
    affine = affine_of("oblique")
    files = write_ct_series(tmp_path / "ct", np.zeros(SHAPE), affine)
    rois = {
        "Cord": [to_lps(ellipse(2, radii=(3, 3)), affine)],
        "Tumor_c00": [to_lps(ellipse(k), affine) for k in (3, 4)],
        "empty": [],
    }
    return write_rtstruct(tmp_path / "rt.dcm", files, rois, shuffle=True), affine


def test_rois_are_matched_by_number(written):
    path, affine = written
    dataset = pydicom.dcmread(path)
    numbers = [item.ROINumber for item in dataset.StructureSetROISequence]
    assert numbers != [item.ReferencedROINumber for item in dataset.ROIContourSequence]  # the orders differ
    structures = read_structures(path)
    (tumour,) = structures.find("tumou?r")
    mask, _ = contour_mask(tumour.contours, SHAPE, affine)
    np.testing.assert_array_equal(mask, drawn([ellipse(3), ellipse(4)], "oblique")[0])
    assert structures.find("empty") == ()


def test_structure_set_knows_what_it_refers_to(written):
    path, _ = written
    structures, (first, *_) = read_structures(path), sorted((path.parent / "ct").iterdir())
    header = pydicom.dcmread(first)
    assert structures.referenced_series == (header.SeriesInstanceUID,)
    assert structures.frame_of_reference_uid == header.FrameOfReferenceUID
    (uid,) = structures.find("cord")[0].contours[0].image_uids
    assert uid.startswith("1.2.826")


def test_only_asked_contours_are_read(written):
    rois = {roi.name: roi.contours for roi in read_structures(written[0], "tumor").rois}
    assert rois["Cord"] is None
    assert len(rois["Tumor_c00"]) == 2


def test_sloppy_structure_sets(written):
    path, _ = written
    dataset = pydicom.dcmread(path)
    del dataset.ReferencedFrameOfReferenceSequence
    for item in dataset.StructureSetROISequence:
        del item.ReferencedFrameOfReferenceUID
    for item in dataset.ROIContourSequence:
        for contour in item.ContourSequence:
            del contour.ContourImageSequence
    del dataset.ROIContourSequence[0]
    dataset.save_as(path)
    structures = read_structures(path)
    assert (structures.referenced_series, structures.frame_of_reference_uid) == ((), "")
    assert [roi.name for roi in structures.find("")] == ["Cord", "Tumor_c00"]


def test_an_image_is_no_structure_set(written):
    image = next((written[0].parent / "ct").iterdir())
    with pytest.raises(UserError, match="holds CT, not RTSTRUCT"):
        read_structures(image)


@pytest.mark.parametrize("values", [["1", "2", "3", "4"], ["1", "nan", "3"], ["1", "x", "3"]])
@pytest.mark.filterwarnings("ignore:.*DS")
def test_damaged_points(written, values):
    path, _ = written
    dataset = pydicom.dcmread(path)
    contour = dataset.ROIContourSequence[1].ContourSequence[0]
    contour.ContourData = ["1"] * len(values)
    contour["ContourData"] = pydicom.dataelem.RawDataElement(
        contour["ContourData"].tag, "DS", 0, b"", 0, False, True
    )._replace(value="\\".join(values).encode() + b" " * (len("\\".join(values)) % 2))
    dataset.save_as(path)
    with pytest.raises(UserError, match="damaged DICOM file"):
        read_structures(path)
