"""What a running config holds: of overlays, options and references."""

from __future__ import annotations

from typing import Any

import pytest
from monai.bundle import ConfigParser

from monai_ext.configuration import deciding_config, described_config, first_difference, running_parser

CONFIG: dict[str, Any] = {
    "imports": ["$import monai_ext.configuration as configuration"],
    "n_pos": [1, 3],
    "output_dir": "out",
    "labels": "$list(range(@n_pos#1))",
    "folder": "@output_dir",
    "run_dir": "@output_dir",
    "limits": {"points": "@n_pos", "first": "@n_pos#0"},
    "inferer": {"_target_": "monai.inferers.SlidingWindowInferer", "roi_size": "@n_pos", "mode": "gaussian"},
    "user": {"_target_": "torch.nn.Identity", "inferer": "@inferer", "labels": "@labels"},
    "run": ["@inferer"],
}


def test_references_to_plain_values_are_replaced():
    config = deciding_config(ConfigParser(CONFIG))
    assert config == {
        "n_pos": [1, 3],
        "labels": "$list(range(@n_pos#1))",
        "folder": "@output_dir",
        "limits": {"points": [1, 3], "first": 1},
        "inferer": {"_target_": "monai.inferers.SlidingWindowInferer", "roi_size": [1, 3], "mode": "gaussian"},
        "user": {"_target_": "torch.nn.Identity", "inferer": "@inferer", "labels": "@labels"},
    }


def test_an_option_deep_inside_counts():
    parser = ConfigParser(CONFIG)
    parser.update({"inferer::roi_size": [3, 3]})
    assert deciding_config(parser)["inferer"]["roi_size"] == [3, 3]
    assert deciding_config(parser)["n_pos"] == [1, 3]


def test_what_is_left_out_stays_a_reference():
    config = deciding_config(ConfigParser(CONFIG), {"n_pos"})
    assert "n_pos" not in config
    assert config["limits"] == {"points": "@n_pos", "first": "@n_pos#0"}


def test_a_reader_gets_the_values_that_were_found():
    parser = ConfigParser(CONFIG)
    parser.get_parsed_content("user", instantiate=True)
    config = described_config(parser)
    assert config["labels"] == [0, 1, 2]
    assert config["output_dir"] == config["run_dir"] == "out"
    assert config["folder"] == "@output_dir", "a place is named once"
    assert config["user"]["inferer"] == "@inferer"
    assert not {"imports", "run"} & set(config)


def test_an_expression_that_did_not_run_stays_as_it_is():
    assert described_config(ConfigParser(CONFIG))["labels"] == CONFIG["labels"]


def test_the_parser_is_found_from_within_its_expressions():
    parser = ConfigParser({**CONFIG, "mine": "$configuration.running_parser()"})
    assert parser.get_parsed_content("mine") is parser
    assert running_parser() is None
    assert deciding_config(None) == described_config(None) == {}


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, ("a#b#1", 2, 3)),
        ({"a": 1}, {"a": 1, "b": None, "c": 2}, ("c", None, 2)),
        ({"a": [1]}, {"a": [1, 2]}, ("a", [1], [1, 2])),
        ({"a": {}}, {"a": {}}, None),
    ],
)
def test_the_first_difference_is_named(one, other, found):
    assert first_difference(one, other) == found
