from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_ext.prompts.translation import fit_translation

VOXEL = np.diag([-2.0, -2.0, 6.0, 1.0])
ACCURACY_MM = 2.0


def tissue(seed: int, size: tuple[int, int, int] = (64, 48, 12)) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), (4, 4, 1))
    return 255 * (noise - noise.min()) / np.ptp(noise)


def moved(affine: np.ndarray, shift: tuple[float, float, float]) -> np.ndarray:
    there = affine.copy()
    there[:3, 3] += shift
    return there


@pytest.mark.parametrize("shift", [(10, -14, 6), (-24, 16, 0), (5, 3, -12)])
def test_a_patient_who_lies_elsewhere_is_found(shift):
    reference = tissue(1)
    target = reference + np.random.default_rng(2).normal(size=reference.shape) * 5
    found = fit_translation(target, moved(VOXEL, shift), reference, VOXEL)
    assert np.abs(found - shift).max() <= ACCURACY_MM


def test_the_target_may_be_a_part_of_the_reference():
    reference = tissue(3)
    corner = VOXEL @ [12, 6, 2, 1] - VOXEL[:, 3]
    affine = moved(VOXEL, tuple(corner[:3] + [8, -6, 6]))
    found = fit_translation(reference[12:52, 6:42, 2:10], affine, reference, VOXEL)
    assert np.abs(found - [8, -6, 6]).max() <= ACCURACY_MM


def test_grids_that_are_turned_and_sampled_otherwise():
    reference = tissue(4)
    affine = VOXEL[:, [1, 0, 2, 3]].copy()  # rows and columns exchanged
    coarser = moved(affine @ np.diag([1, 2, 1, 1]), (9, 0, 6))
    found = fit_translation(reference.transpose(1, 0, 2)[:, ::2], coarser, reference, VOXEL)
    assert np.abs(found - [9, 0, 6]).max() <= ACCURACY_MM + 1


def test_an_image_that_lies_right_is_left_there():
    reference = tissue(5)
    assert fit_translation(reference, VOXEL, reference, VOXEL).tolist() == [0, 0, 0]


@pytest.mark.parametrize("target", [np.zeros((64, 48, 12)), np.zeros((64, 48, 1))])
def test_an_image_without_structure_moves_nothing(target):
    assert fit_translation(target, VOXEL, tissue(6), VOXEL).tolist() == [0, 0, 0]


@pytest.mark.parametrize("smooth", [False, True])
def test_images_that_have_nothing_in_common_move_nothing(smooth):
    noise = np.random.default_rng(7).normal(size=(2, 64, 48, 12))
    target, reference = (tissue(8), tissue(9)) if smooth else noise
    assert fit_translation(target, VOXEL, reference, VOXEL).tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_smooth_images_that_a_shift_brings_together_by_chance_move_nothing(seed):
    noise = np.random.default_rng(seed).normal(size=(2, 64, 48, 12))
    target, reference = (ndimage.gaussian_filter(one, (10, 10, 3)) for one in noise)
    assert fit_translation(target, VOXEL, reference, VOXEL).tolist() == [0, 0, 0]
