from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from phantoms.video import FRAME_LABELS, phantom_frames, write_phantom_frames


def test_frames_are_a_video_of_one_moving_polyp():
    centres = []
    for picture, polyp in phantom_frames(0, 3):
        assert (picture.shape, picture.dtype) == ((288, 384, 3), np.uint8)
        assert np.unique(polyp).tolist() == [0, 255]
        assert ndimage.label(polyp)[1] == 1
        assert 0.005 < (polyp > 0).mean() < 0.3
        centres.append(ndimage.center_of_mass(polyp))
    assert min(np.linalg.norm(np.diff(centres, axis=0), axis=1)) > 5


def test_a_video_needs_a_frame():
    with pytest.raises(ValueError, match="at least one frame"):
        phantom_frames(0, 0)


@pytest.mark.slow
def test_written_video_is_the_pure_one(tmp_path):
    path = write_phantom_frames(tmp_path, seed=0, n=3)
    content = json.loads(path.read_text())
    assert content["labels"] == FRAME_LABELS == {"polyp": 255}
    assert [case["visit"] for case in content["cases"]] == [1, 2, 3]
    for case, (picture, polyp) in zip(content["cases"], phantom_frames(0, 3), strict=True):
        with Image.open(tmp_path / case["image"]) as image, Image.open(tmp_path / case["label"]) as label:
            assert (image.size, image.mode, label.mode) == ((384, 288), "RGB", "L")
            np.testing.assert_array_equal(np.asarray(image), picture)
            np.testing.assert_array_equal(np.asarray(label), polyp)
