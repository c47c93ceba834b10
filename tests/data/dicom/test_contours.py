"""Contours to voxels: against a scalar reference, against analytic shapes, and on every kind of grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_ext.data.dicom.contours import contour_mask, fill_polygons
from monai_ext.data.dicom.rtstruct_reader import Contour
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "copy",
    [
        lambda outline: np.concatenate([outline, outline[:1]]),
        lambda outline: np.roll(outline, 100, axis=0),
        lambda outline: outline[::-1],
        lambda outline: np.round(outline, 1),
        lambda outline: np.insert(outline, 5, (outline[4] + outline[5]) / 2, axis=0),
        lambda outline: np.repeat(outline, 2, axis=0),
        lambda outline: outline + (0, 0, 0.001),
    ],
    ids=["closed", "begun elsewhere", "reversed", "rounded", "a point more", "points twice", "beside its plane"],
)
def test_a_copy_of_an_outline_makes_no_hole(copy):
    mask, notes = drawn([ellipse(2), ellipse(3), copy(ellipse(3)), ellipse(3, radii=(5, 4))])
    np.testing.assert_array_equal(mask, drawn([ellipse(2), ellipse(3), ellipse(3, radii=(5, 4))])[0])
    assert notes == ["1 copies of outlines were passed over"]


def test_a_thin_ring_is_no_copy():
    outer, inner = ellipse(3), ellipse(3, radii=(18.1, 10.9))
    mask, notes = drawn([outer, inner])
    assert mask.sum() < 0.1 * inside_ellipse().sum()
    assert notes == []


def test_slices_whose_contours_fill_nothing_are_named():
    tiny = {"radii": (0.2, 0.2), "centre": (30.5, 27.5)}
    _, notes = drawn([ellipse(1, **tiny), ellipse(2, **tiny), ellipse(3), ellipse(4, **tiny)])
    assert notes == ["contours enclose no voxel on slices 1-2, 4 (counted from 0); look at them in a viewer"]


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


def test_outlines_between_two_slices_are_told_of():
    mask, notes = drawn([ellipse(2.5), ellipse(3.5)])
    assert mask.any(axis=(0, 1)).nonzero()[0].tolist() == [3, 4]
    assert notes[0].startswith("on 2 slices the outlines lie about half-way to the next one")
    assert drawn([ellipse(2.1), ellipse(2.9)])[1] == []


def test_nearest_plane_wins_where_planes_are_denser_than_slices():
    mask, notes = drawn([ellipse(3.3), ellipse(3.0, radii=(6, 5)), ellipse(2.7)])
    np.testing.assert_array_equal(mask, drawn([ellipse(3, radii=(6, 5))])[0])
    assert notes == ["on 1 slices lie outlines of several planes; the nearest plane was taken"]


def test_gaps_are_named():
    assert drawn([ellipse(1), ellipse(4)])[1] == ["2 slices between outlined ones have no outline; they stay empty"]
