"""Tests of monai_ext.data.slice_axis."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_ext.data.slice_axis import stored_slice_axis, through_plane_axis
from monai_ext.transforms.sam_input import find_layout


@settings(max_examples=60, deadline=None)
@given(
    st.permutations([0, 1, 2]),
    st.lists(st.sampled_from([0.8, 1.0, 1.005, 3.0]), min_size=3, max_size=3),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.3, -0.6]),
    st.sampled_from([None, "R", "A", "S"]),
)
def test_slices_are_those_that_inferers_cut(order, spacing, shape, tilt, letter):
    affine = np.zeros((4, 4))
    affine[order, range(3)] = np.multiply(spacing, [-1, 1, -1])
    turn = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    affine[:3, :3], affine[3, 3] = turn @ affine[:3, :3], 1
    assert stored_slice_axis(shape, affine, letter) == find_layout(shape, affine, letter).order[2]


def test_frames_have_no_slices():
    assert stored_slice_axis((4, 4), None) is None


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((9, 9, 9), (1, 1, 1), 2),
        ((9, 9, 9), (3, 1, 1), 0),
        ((9, 9, 9), (1, 1, 0.995), 2),
        ((9, 1, 9), (3, 1, 1), 1),
        ((9, 9), None, 1),
    ],
)
def test_slices_are_counted_where_voxels_are_longest(shape, spacing, axis):
    assert through_plane_axis(shape, spacing) == axis
