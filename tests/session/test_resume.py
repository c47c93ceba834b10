from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from monai_ext.errors import UserError
from monai_ext.files import sha256_of
from monai_ext.session import resume


def test_settings_are_what_decides_a_result(tmp_path, bundle, datalist):
    """The config is that of the running expression, with its overrides and without what decides nothing."""
    weights = bundle / "models" / "compact_acdc.pt"
    config = {"seed": 0, "n_pos": [1, 3], "output_dir": "out", "imports": ["$import monai_ext.session as session"]}
    config |= {"list": datalist, "weights": str(weights), "device": "cuda:1"}
    config["settings"] = "$session.case_settings(@list, @weights, @device)"
    parser = ConfigParser(config)
    parser.update({"seed": 4, "n_pos": "$[1, 1]"})
    settings = parser.get_parsed_content("settings")
    assert settings["config"] == {
        "seed": 4,
        "n_pos": "$[1, 1]",
        "list": datalist,
        "weights": str(weights),
        "settings": config["settings"],
    }
    assert settings["weights"] == sha256_of(weights)
    assert settings["device"] == "cuda"
    assert settings["labels"] == datalist.labels
    assert resume.running_config() == {}


def test_the_source_of_a_method_counts(monkeypatch, tmp_path):
    (tmp_path / "inferers").mkdir()
    monkeypatch.setattr(resume, "__file__", str(tmp_path / "session" / "resume.py"))
    keys = []
    for name, text in (("inferers/a.py", "x"), ("inferers/a.py", "y"), ("inferers/b.py", "y"), ("other.py", "z")):
        (tmp_path / name).write_text(text)
        keys.append(resume._source_sha256())
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]


def keep_settings(folder: Path, **changes: object) -> None:
    config = {"output_dir": str(folder), "seed": 0, "rounds": 1, "device": "cpu", **changes}
    parser = ConfigParser({"imports": ["$import monai_ext.session as session"], **config})
    parser["kept"] = "$session.keep_settings(@output_dir)"
    parser.get_parsed_content("kept")


def test_a_training_goes_on_with_its_own_settings_alone(tmp_path):
    keep_settings(tmp_path, seed=7)  # refused for another reason before its first stage
    keep_settings(tmp_path)
    (tmp_path / "round_0").mkdir()
    keep_settings(tmp_path, rounds=2, device="cuda")  # more rounds, another device
    with pytest.raises(RuntimeError) as caught:
        keep_settings(tmp_path, seed=1)
    assert isinstance(caught.value.__cause__, UserError)
    assert "another seed (0, now 1)" in str(caught.value.__cause__)
    keep_settings(tmp_path / "new", seed=1)
