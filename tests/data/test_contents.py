"""What a result was made of, whatever the names of its files."""

from __future__ import annotations

import pytest

from monai_ext.data.contents import case_contents, content_key
from monai_ext.errors import UserError
from monai_ext.files import sha256_of


def test_a_key_is_of_the_content_not_of_its_order():
    assert content_key({"a": 1, "b": [2.0, None]}) == content_key({"b": [2.0, None], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": "1"})


def test_files_count_by_their_content_and_kind(tmp_path):
    for name, text in (("a.png", "x"), ("b.png", "x"), ("c.png", "y"), ("d.tif", "x")):
        (tmp_path / name).write_text(text)
    case = {"case": "one", "modality": "CT", "label": None}

    def of(*names: str) -> dict:
        image, *references = (str(tmp_path / name) for name in names)
        return case_contents({**case, "image": image, "reference_image": references})

    assert of("a.png", "c.png") == of("b.png", "c.png")
    assert of("a.png") != of("c.png")
    assert of("a.png") != of("d.tif")
    assert of("a.png", "a.png") != of("a.png", "c.png")
    assert of("a.png")["image"] == [".png", sha256_of(tmp_path / "a.png")]
    assert of("a.png")["case"] == "one"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        case_contents({"image": str(tmp_path / "gone.png")})
