from __future__ import annotations

import pytest

from monai_ext.data.cards import load_card
from monai_ext.data.indexing.frame import Options
from monai_ext.data.indexing.structures import structure_to_find
from monai_ext.errors import UserError


@pytest.mark.parametrize("name", ["4d_lung", "nsclc_radiomics"])
def test_the_cards_name_one_structure(name: str) -> None:
    card = load_card(name)
    assert structure_to_find(card, Options()) == (1, card.roi_names["tumour"])
    assert structure_to_find(card, Options(roi="^heart$")) == (1, "^heart$")


def test_a_broken_expression_is_named() -> None:
    with pytest.raises(UserError, match=r"--roi: '\(' is no regular expression"):
        structure_to_find(load_card("4d_lung"), Options(roi="("))
