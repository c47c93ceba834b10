"""What decides a result, and what a training may go on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from monai_ext.data.manifest import DataList
from monai_ext.errors import UserError, find_user_error
from monai_ext.files import sha256_of
from monai_ext.session import resume


def test_settings_are_what_decides_a_result(tmp_path, bundle, datalist):
    """The config is that of the running expression, with its overrides and without what decides nothing."""
    weights = bundle / "models" / "compact_acdc.pt"
    config = {"seed": 0, "n_pos": [1, 3], "output_dir": "out", "imports": ["$import monai_ext.session as session"]}
    config |= {"list": datalist, "weights": str(weights), "device": "cuda:1", "mean_of": "case"}
    config["inferer"] = {"_target_": "torch.nn.Identity", "n_pos": "@n_pos"}
    config["settings"] = "$session.case_settings(@list, @weights, @device)"
    parser = ConfigParser(config)
    parser.update({"seed": 4, "inferer::n_pos": [3, 3]})
    settings = parser.get_parsed_content("settings")
    assert settings["config"] == {
        "seed": 4,
        "n_pos": [1, 3],
        "inferer": {"_target_": "torch.nn.Identity", "n_pos": [3, 3]},
        "list": datalist,
        "settings": config["settings"],
    }
    assert settings["weights"] == [sha256_of(weights)]
    assert settings["device"] == "cuda"
    assert settings["labels"] == list(datalist.labels.items())
    assert settings["made_with"]["source"] == resume.source_sha256()


class Training:
    """A training's folder, and what a start of it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder / "out", folder
        for name in ("image", "label", "other"):
            (folder / f"{name}.png").write_text(name)
        (folder / "start.pt").write_text("weights")
        self.labels = {"RV": 1, "LV": 2}
        files = {name: str(folder / f"{name}.png") for name in ("image", "label")}
        self.cases: list[dict[str, Any]] = [{"case": f"c{n}", "patient": f"p{n}", **files} for n in range(3)]
        self.config: dict[str, Any] = {"seed": 0, "rounds": 1, "device": "cpu", "learning_rate": 0.1}

    def start(self, accept_code: bool = False, **options: Any) -> None:
        """Call :func:`session.keep_training` as a config does."""
        parser = ConfigParser({"imports": ["$import monai_ext.session as session"], **self.config, **options})
        groups = {"train": self.cases[:-1], "validation": self.cases[-1:]}
        parser["given"] = {"cases": DataList(dataset="ACDC", labels=self.labels, cases=[]), "groups": groups}
        parser.update({"output_dir": str(self.folder), "weights": str(self.data / "start.pt")})
        parser["accept_code"] = accept_code
        given = "@output_dir, @given#cases, @given#groups, @weights"
        parser["kept"] = f"$session.keep_training({given}, ['rounds', 'given'], @accept_code)"
        try:
            parser.get_parsed_content("kept")
        except RuntimeError as error:
            raise find_user_error(error) or error from error

    def begin(self) -> None:
        """Start, and leave a checkpoint."""
        self.start()
        (self.folder / "checkpoint.pt").write_text("state")


@pytest.fixture
def training(tmp_path) -> Training:
    return Training(tmp_path)


def test_a_training_goes_on_with_its_own_settings(training):
    training.begin()
    before = (training.folder / "settings.json").read_bytes()
    training.start()
    training.start(rounds=2, device="cuda")  # more rounds, another device
    assert (training.folder / "settings.json").read_bytes() == before


def test_a_start_that_left_nothing_is_replaced(training):
    training.start(seed=7)
    training.start(seed=8)
    assert json.loads((training.folder / "settings.json").read_text())["config"]["seed"] == 8


@pytest.mark.parametrize("left", ["round_0", "checkpoint.pt", "model.pt"])
def test_another_option_is_named(training, left):
    training.start()
    (training.folder / left).mkdir()
    with pytest.raises(UserError, match=r"out holds a training with another learning_rate \(0.1, now 0.2\): repeat it"):
        training.start(learning_rate=0.2)


def swap_labels(training: Training) -> None:
    training.labels = {"RV": 2, "LV": 1}


def lose_a_case(training: Training) -> None:
    del training.cases[0]


def change_an_entry(training: Training) -> None:
    training.cases[0]["patient"] = "p9"


def correct_a_label(training: Training) -> None:
    (training.data / "label.png").write_text("corrected")


def change_the_start(training: Training) -> None:
    (training.data / "start.pt").write_text("other weights")


def reorder(training: Training) -> None:
    training.cases[:2] = training.cases[1::-1]


def validate_on_another(training: Training) -> None:
    training.cases.reverse()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (swap_labels, r"another labels of the data list \(.*RV.*, now"),
        (lose_a_case, "that had case c0 in its train cases"),
        (validate_on_another, "that had case c0 in its train cases"),
        (change_an_entry, "in which case c0 had another patient"),
        (correct_a_label, "in which case c0 had another label"),
        (change_the_start, "that began with other weights"),
        (reorder, "with its train cases in another order"),
    ],
)
def test_other_data_are_named(training, change, sentence):
    training.begin()
    before = (training.folder / "settings.json").read_bytes()
    change(training)
    with pytest.raises(UserError, match=sentence):
        training.start(accept_code=True)
    assert (training.folder / "settings.json").read_bytes() == before


def test_files_may_lie_elsewhere(training):
    training.begin()
    (training.data / "moved.png").write_text("image")
    training.cases[0]["image"] = str(training.data / "moved.png")
    training.start()


def test_other_code_has_to_be_accepted(training, monkeypatch):
    training.begin()
    monkeypatch.setattr(resume, "source_sha256", lambda: "0123456789abcdef")
    with pytest.raises(UserError, match=r"another source of monai_ext \(.*, now 0123456789ab\).*--accept_code true"):
        training.start()
    training.start(accept_code=True)
    training.start()  # it stands in the settings from now on
    kept = json.loads((training.folder / "settings.json").read_text())
    assert [made["source"] for made in kept["accepted"]] == ["0123456789abcdef"]
    assert kept["made_with"]["source"] != "0123456789abcdef"


def test_a_folder_of_unknown_making_is_refused(training):
    training.begin()
    (training.folder / "settings.json").unlink()
    with pytest.raises(UserError, match=r"without a usable settings\.json"):
        training.start()
