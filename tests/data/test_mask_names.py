"""Names of files that are named by a structure."""

from __future__ import annotations

import pytest

from monai_ext.data.mask_names import refuse_shared_files, structure_file, structure_name
from monai_ext.errors import UserError


def test_blanks_and_slashes_are_underscores_and_all_else_stays() -> None:
    assert structure_name("GTV 1/left\\süd-2.5") == "GTV_1_left_süd-2.5"
    assert structure_file("visit 2", "left kidney") == "visit 2_left_kidney"


@pytest.mark.parametrize(
    ("cases", "labels"),
    [
        (["v"], {"a b": 1, "a_b": 2}),
        (["v", "v_a"], {"a_b": 1, "b": 2}),
    ],
)
def test_two_masks_of_one_name_are_refused(cases, labels) -> None:
    with pytest.raises(UserError, match=r"mask file v_a_b would be of .* and .*: rename one"):
        refuse_shared_files([{"case": case} for case in cases], labels)


def test_masks_of_names_of_their_own_pass() -> None:
    refuse_shared_files([{"case": "v"}, {"case": "w"}], {"a b": 1, "a_c": 2})
    refuse_shared_files(
        [{"case": "v"}, {"case": "v_a"}], {"a_b": 1}
    )  # one structure: a case's mask has the case's name
