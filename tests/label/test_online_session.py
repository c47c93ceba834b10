"""The follow-up session that learns, over HTTP: later visits are found without prompts, and corrections teach."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.images import read_label
from monai_ext.data.manifest import load_datalist
from monai_ext.data.phantoms import write_phantom_patient
from monai_ext.engines.online.journal import Journal
from monai_ext.errors import UserError
from monai_ext.label.layout import prepare_online
from monai_ext.label.server import infer, model_info, running, submit

BUNDLES = Path(__file__).parents[2] / "bundles"
OPTIONS = {"checkpoint": "compact_open", "device": "cpu", "base": 4, "crop": 32, "learning_rate": 5e-3}
PATIENTS = 3
MODEL = "auxol"
FIRST = "p0_0"


class Session:
    """A server of several patients, of whom only the first visits are annotated."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.truths = folder, {}
        content: dict = {}
        for number in range(PATIENTS):
            datalist = write_phantom_patient(folder / f"patient{number}", seed=number)
            one = json.loads(datalist.read_text())
            content = content or {**one, "cases": []}
            for case, loaded in zip(one["cases"], load_datalist(datalist).cases, strict=True):
                case |= {"case": f"p{number}_{loaded.visit}", "patient": f"p{number}", "image": loaded.image}
                label = case.pop("label", None)
                if label is not None and loaded.visit == min(c["visit"] for c in one["cases"]):
                    case["label"] = loaded.label
                elif label is not None:
                    self.truths[case["case"]] = loaded.label
                content["cases"].append(case)
        (folder / "list.json").write_text(json.dumps(content))
        options = {**OPTIONS, "sam_root": str(BUNDLES / "p2sam"), "prompt": "automatic"}
        self.app = prepare_online(folder / "list.json", folder, BUNDLES / "auxol", options)

    @property
    def later(self) -> list[str]:
        return sorted(self.truths)

    def ask(self, study: str) -> np.ndarray:
        body = infer(self.url, study, {}, bundle=MODEL)
        return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(body)).dataobj)

    def dice(self, study: str) -> float:
        mask, truth = self.ask(study), read_label(self.truths[study])
        return float(np.mean([agreement(mask == value, truth == value) for value in np.unique(truth)[1:]]))

    def settle(self) -> dict:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            status = model_info(self.url, MODEL)["online"]
            if not status["waiting"]:
                return status
            time.sleep(0.1)
        raise AssertionError(f"still waiting: {status}")


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    return 2.0 * float((one & other).sum()) / float(one.sum() + other.sum())


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Iterator[Session]:
    one = Session(tmp_path_factory.mktemp("session"))
    with running(one.app, one.folder / "studies", one.folder / "log", MODEL) as one.url:
        yield one


def test_corrections_of_earlier_patients_help_later_ones(session):
    assert model_info(session.url, MODEL)["type"] == "segmentation"  # viewers ask without prompts
    *taught, last = [study for study in session.later if study != f"p{PATIENTS - 1}_1"]
    before = session.dice(last)
    for study in taught:
        session.ask(study)
        assert submit(session.url, study, Path(session.truths[study]))["online"]["status"] == "queued"
    status = session.settle()
    assert status["last"]["refused"] == []
    assert min(status["learned"].values()) > 5
    assert session.dice(last) > before + 0.01


def test_the_journal_names_cases_and_slices_and_no_prompt(session):
    folders = sorted((session.folder / "learning" / "learners").iterdir())
    assert [folder.name for folder in folders] == ["kidney", "lesion"]
    for folder in folders:
        journal = Journal(folder, read_only=True)
        journal.check()
        assert {entry.about["case"]["case"] for entry in journal.entries} <= set(session.later)
        assert all(entry.about["prompt"] == {} for entry in journal.entries)


def test_a_prompt_and_a_first_visit_are_answered_with_a_sentence(session):
    with pytest.raises(UserError, match="without prompts"):
        infer(session.url, session.later[0], {"foreground": [[10, 10, 2]]}, bundle=MODEL)
    with pytest.raises(UserError, match="has no annotated visit before it"):
        infer(session.url, FIRST, {}, bundle=MODEL)


def test_the_label_of_a_first_visit_is_a_reference_and_teaches_nothing(session):
    before = session.settle()["learned"]
    label = session.folder / "studies" / "labels" / "final" / f"{FIRST}.nii.gz"
    copy = session.folder / "first.nii.gz"
    copy.write_bytes(label.read_bytes())
    submit(session.url, FIRST, copy)
    status = session.settle()
    assert status["learned"] == before
    assert "serves later visits" in status["last"]["refused"][0]
