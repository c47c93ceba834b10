from __future__ import annotations

import pytest

from monai_ext.data.dicom.structures import TISSUE, check_name, colour_of, find_codes
from monai_ext.errors import UserError


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [
        ("liver", "Liver", None),
        ("Left_Kidney", "Kidney", "Left"),
        ("right lung", "Lung", "Right"),
        ("tumour", "Neoplasm", None),
        ("LV", "Left ventricle", None),
        ("left ventricle", "Left ventricle", None),
        ("MYO", "Left Ventricle Myocardium", None),
        ("something", "Tissue", None),
        ("left something", "Tissue", "Left"),
    ],
)
def test_names_are_coded(name, meaning, side):
    category, kind, found = find_codes(name)
    assert kind.meaning == meaning
    assert (found and found.meaning) == side
    assert (category == TISSUE) == (meaning == "Tissue")


def test_colours_are_repeated_beyond_eight():
    assert colour_of(8) == colour_of(0) == (0x56, 0xB4, 0xE9)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\\b", " a", "a\n"])
def test_names_that_dicom_cannot_hold(name):
    with pytest.raises(UserError, match="cannot be the name of a structure"):
        check_name(name)
