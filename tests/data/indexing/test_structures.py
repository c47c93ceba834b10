"""Which ROI becomes which structure."""

from __future__ import annotations

import pytest

from monai_ext.data.cards import load_card
from monai_ext.data.indexing.index import Index, Options
from monai_ext.data.indexing.structures import parse_roi, patterns_of, structure_to_find
from monai_ext.errors import UserError


@pytest.fixture
def index() -> Index:
    return Index({"labels": {"tumour": 1}})


@pytest.mark.parametrize("name", ["4d_lung", "nsclc_radiomics"])
def test_the_cards_name_one_structure(name: str, index: Index) -> None:
    card = load_card(name)
    assert structure_to_find(card, Options(), index) == (1, card.roi_names["tumour"])
    assert structure_to_find(card, Options(roi=("^heart$",)), index) == (1, "^heart$")
    assert index.datalist["labels"] == {"tumour": 1}


def test_a_named_expression_names_the_label(index: Index) -> None:
    assert structure_to_find(load_card("4d_lung"), Options(roi=("heart=^cor$",)), index) == (1, "^cor$")
    assert index.datalist["labels"] == {"heart": 1}


def test_a_broken_expression_is_named(index: Index) -> None:
    with pytest.raises(UserError, match=r"--roi: '\(' is no regular expression"):
        structure_to_find(load_card("4d_lung"), Options(roi=("(",)), index)


def test_a_card_takes_one_structure(index: Index) -> None:
    with pytest.raises(UserError, match="indexed for one structure"):
        structure_to_find(load_card("4d_lung"), Options(roi=("a=b", "c=d")), index)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("tumour=GTV.*", ("tumour", "GTV.*")),
        ("left lung = x=y", ("left lung", " x=y")),
        ("GTV(?=-1)", (None, "GTV(?=-1)")),
        ("GTV", (None, "GTV")),
    ],
)
def test_a_name_ends_at_the_first_equals_sign(text: str, read: tuple[str | None, str]) -> None:
    assert parse_roi(text) == read


@pytest.mark.parametrize(
    ("options", "names", "found"),
    [
        (Options(roi=("b=x", "a=y")), "xy", {"b": (1, "x"), "a": (2, "y")}),
        (Options(roi=("b=x", "a=y"), labels={"a": 7, "b": 5}), "xy", {"b": (5, "x"), "a": (7, "y")}),
        (Options(roi=("x",), labels={"a": 7}), "xy", {"a": (7, "x")}),
        (Options(labels={"x": 3}), "Xy", {"x": (3, "^x$")}),
        (Options(labels={"a": 3}), "xxX", {"a": (3, "^X$")}),
        (Options(), "x", {"x": (1, "^x$")}),
        (Options(labels={"a": 3}), "", {"a": (3, "^a$")}),
    ],
)
def test_structures_are_found_by_name(options: Options, names: str, found: dict[str, tuple[int, str]]) -> None:
    assert patterns_of(options, names) == found


def test_descriptions_count_for_expressions_only() -> None:
    assert patterns_of(Options(roi=("a=GTV",)), ["Neoplasm"], ["GTV-1"]) == {"a": (1, "GTV")}
    assert patterns_of(Options(), ["Neoplasm"], ["GTV-1"]) == {"Neoplasm": (1, "^Neoplasm$")}


@pytest.mark.parametrize(
    ("options", "names", "sentence"),
    [
        (Options(), "xy", "there are: 'x', 'y'"),
        (Options(labels={"a": 1}), "xy", "say which ROI or segment is which structure"),
        (Options(labels={"a": 1, "b": 2}), "x", "say which ROI or segment is which structure"),
        (Options(), "", "there is no RTSTRUCT or SEG"),
        (Options(roi=("a=z",)), "xy", r"no ROI or segment is called 'z' \(a\); there are: 'x', 'y'"),
        (Options(roi=("x",)), "x", "write NAME=REGEX, such as tumour=x"),
        (Options(roi=("a=x", "a=y")), "xy", "'a' is given twice"),
        (Options(roi=("a=x",), labels={"b": 1}), "x", "--roi names a and --labels b"),
    ],
)
def test_what_is_not_clear_is_asked(options: Options, names: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        patterns_of(options, names)
