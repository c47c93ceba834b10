from __future__ import annotations

import pytest
from fire.parser import DefaultParseValue

from monai_ext.errors import UserError
from monai_ext.session.values import read_value


def read(word: str, default: object) -> object:
    return read_value("x", DefaultParseValue(word), default, word)


@pytest.mark.parametrize(
    ("word", "default", "value"),
    [
        ("3", 0, 3),
        ("1e5", 0, 100000),
        ("2.0", 0, 2),
        ("-1", 0, -1),  # whether it makes sense is for who takes it
        ("1", 0.5, 1),
        ("1e-3", 0.5, 0.001),
        ("true", False, True),
        ("False", True, False),
        ("2024", "out", "2024"),
        ("1_000", "out", "1_000"),
        ("visit,patient", "case", "visit,patient"),
        ("[2,3]", [1, 3], [2, 3]),
        ("1,5-10", [1, 3], "1,5-10"),
        ("4", [1, 3], 4),
        ("[1,0.5]", [1.0, 1.0], [1, 0.5]),
        ("p07", [], "p07"),
        ("{'box': 2}", {"none": 1}, {"box": 2}),
        ("null", None, None),
        ("false", None, False),
        ("anything", None, "anything"),
        ("null", {"_target_": "torch.nn.Identity"}, None),
    ],
)
def test_a_value_of_the_kind_is_read_as_yaml_reads_it(word, default, value):
    found = read(word, default)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("default", [0, 0.5, True, "text", [1, 2], {"a": 1}, None])
@pytest.mark.parametrize("word", ["$1 + 1", "@seed", "%other.yaml#seed"])
def test_expressions_and_references_pass(word, default):
    assert read(word, default) == word


@pytest.mark.parametrize(
    ("word", "default", "expected"),
    [
        ("1.5", 0, "--x is 1.5: a whole number is expected, such as 0."),
        ("true", 0, "a whole number is expected"),
        ("abc", 0, "a whole number is expected"),
        ("[1]", 0, "a whole number is expected"),
        ("null", 0, "a whole number is expected"),
        ("inf", 0.5, "a number is expected, such as 0.5."),
        ("1e999", 0.5, "a number is expected"),
        ("True", 0.5, "a number is expected"),
        ("maybe", False, "true or false is expected, such as false."),
        ("1", False, "true or false is expected"),
        ("['a']", "case", "text is expected, such as case."),
        ("{'a': 1}", "case", "text is expected"),
        ("abc", [1, 3], 'a list of whole numbers is expected, such as "[1, 3]".'),
        ("[1.5,2]", [1, 3], "a list of whole numbers is expected"),
        ("['a',1]", [1.0, 1.0], "a list of numbers is expected"),
        ("true", [1.0, 1.0], "a list of numbers is expected"),
        ("5", {"a": 1}, "an object of names and values is expected"),
        ("{'a': 'x'}", {"a": 1}, "an object of names and numbers is expected"),
    ],
)
def test_a_value_of_another_kind_is_refused(word, default, expected):
    with pytest.raises(UserError) as error:
        read(word, default)
    assert expected in str(error.value)
