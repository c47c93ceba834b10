from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_ext.data.phantoms import PATIENT_LABELS, phantom_patient


def test_patient_has_each_structure_at_each_visit(visits):
    assert len(visits) == 3
    for visit in visits:
        assert visit.image.dtype == np.float32
        assert visit.label.dtype == np.uint8
        assert visit.image.shape == visit.label.shape
        assert np.unique(visit.label).tolist() == [0, *PATIENT_LABELS.values()]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_lesion_grows_in_one_piece(seed):
    lesions = [visit.label == PATIENT_LABELS["lesion"] for visit in phantom_patient(seed)]
    volumes = [int(lesion.sum()) for lesion in lesions]
    assert 1.2 * volumes[0] < volumes[1]
    assert 1.1 * volumes[1] < volumes[2]
    assert [ndimage.label(lesion)[1] for lesion in lesions] == [1, 1, 1]


def test_lesion_moves(visits):
    centres = [
        visit.affine[:3, :3] @ ndimage.center_of_mass(visit.label == PATIENT_LABELS["lesion"]) + visit.affine[:3, 3]
        for visit in visits
    ]
    assert np.linalg.norm(centres[1] - centres[0]) > 1
    assert np.linalg.norm(centres[2] - centres[0]) > 1


def test_grids_are_oblique_and_differ_by_a_small_shift(visits):
    for visit in visits:
        axes = visit.affine[:3, :3]
        np.testing.assert_allclose(np.linalg.norm(axes, axis=0), (1.6, 1.6, 8.0))
        angle = np.degrees(np.arccos(np.abs(axes[2, 2]) / 8.0))
        assert 2 < angle < 25
        assert np.linalg.det(axes) > 0
    centres = [visit.affine @ [63.5, 55.5, 3.5, 1] for visit in visits]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.5 < np.linalg.norm(centres[a] - centres[b]) < 12
        assert not np.allclose(visits[a].affine[:3, :3], visits[b].affine[:3, :3])


@pytest.mark.slow
def test_patients_differ_by_seed_and_visits_by_noise(visits):
    other = phantom_patient(4)
    assert not np.array_equal(visits[0].image, other[0].image)
    air = [visit.image[:4, :4] for visit in visits]
    assert not np.array_equal(air[0], air[1])
    assert air[0].std() > 0
