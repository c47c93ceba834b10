from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_ext.data.phantoms import phantom_frames


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
