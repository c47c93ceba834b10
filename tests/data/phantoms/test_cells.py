from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from monai_ext.data.phantoms import phantom_cells, write_phantom_cells


def test_one_of_two_alike_cells_is_annotated_and_moves_slowly():
    centres, greys = [], []
    for picture, label in phantom_cells(0, 4):
        assert (picture.shape, picture.dtype, label.shape) == ((224, 256), np.uint8, (224, 256))
        assert np.unique(label).tolist() == [0, 255]
        bodies, count = ndimage.label(ndimage.binary_opening(ndimage.gaussian_filter(picture, 2.0) < 110, iterations=3))
        assert count == 2
        own = np.bincount(bodies[label > 0])[1:].argmax() + 1
        greys.append([picture[bodies == own].mean(), picture[bodies == 3 - own].mean()])
        centres.append([ndimage.center_of_mass(label), ndimage.center_of_mass(bodies == 3 - own)])
    steps = np.linalg.norm(np.diff([own for own, _ in centres], axis=0), axis=1)
    assert 0 < steps.max() < 12, "less than a radius a frame"
    assert min(np.linalg.norm(np.subtract(own, other)) for own, other in centres) > 60
    assert np.abs(np.diff(greys, axis=1)).max() < 12


def test_the_seed_is_all_that_counts_and_more_frames_go_on():
    for (picture, label), (again, label_again) in zip(phantom_cells(3, 2), phantom_cells(3, 3), strict=False):
        assert np.array_equal(picture, again)
        assert np.array_equal(label, label_again)
    assert not np.array_equal(phantom_cells(3, 1)[0][0], phantom_cells(4, 1)[0][0])


def test_a_video_needs_a_frame():
    with pytest.raises(ValueError, match="at least one frame"):
        phantom_cells(0, 0)


def test_written_list_names_the_frames_in_order(tmp_path):
    content = json.loads(write_phantom_cells(tmp_path, 0, 2).read_text())
    assert content["labels"] == {"cell": 255}
    assert [(case["case"], case["visit"]) for case in content["cases"]] == [
        ("phantom_cell001", 1),
        ("phantom_cell002", 2),
    ]
    assert all((tmp_path / case[kind]).is_file() for case in content["cases"] for kind in ("image", "label"))
