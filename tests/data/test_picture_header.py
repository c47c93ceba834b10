"""What a picture says of its pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from monai_ext.data.picture_header import PictureHeader, picture_header


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("a.png", "L", PictureHeader("L", "PNG", "L", 1, False)),
        ("a.png", "RGBA", PictureHeader("RGBA", "PNG", "RGBA", 1, True)),
        ("a.png", "I;16", PictureHeader("I;16", "PNG", "I;16B", 1, False)),
        ("a.bmp", "RGB", PictureHeader("RGB", "BMP", "BGR", 1, False)),
    ],
)
def test_header(tmp_path, name, mode, expected):
    Image.fromarray(np.zeros((3, 4), np.uint16 if mode == "I;16" else np.uint8)).convert(mode).save(tmp_path / name)
    with open(tmp_path / name, "rb") as stream, Image.open(stream) as picture:
        place = stream.tell()
        assert picture_header(picture, stream) == expected
        assert stream.tell() == place
        assert np.asarray(picture).shape[:2] == (3, 4), "the pixels can still be read"
    assert expected.is_deep == (mode == "I;16")
