"""A server that learns from submitted labels, over HTTP: what it learns, what it refuses, what it keeps."""

from __future__ import annotations

import io
import json
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_ext.data.images import read_label
from monai_ext.data.manifest import load_datalist
from monai_ext.data.phantoms import write_phantom_stream
from monai_ext.engines.online.journal import Journal
from monai_ext.errors import UserError
from monai_ext.label.layout import prepare_online
from monai_ext.label.server import infer, model_info, running_process, submit

BUNDLES = Path(__file__).parents[2] / "bundles"
OPTIONS = {"checkpoint": "compact_chaos", "device": "cpu", "base": 4, "crop": 32, "learning_rate": 5e-3}
TAUGHT, ASKED = 8, 6


class Online:
    """A server that can be killed and started again, and its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        datalist = write_phantom_stream(folder / "images", n=TAUGHT + ASKED)
        cases = load_datalist(datalist)
        self.truths = {case.case: read_label(case.label) != 0 for case in cases.cases if case.label}
        self.value = next(iter(cases.labels.values()))
        content = json.loads(datalist.read_text())
        for case in content["cases"]:
            case.pop("label")  # the server is never shown the truth of what it has not been taught
        (datalist.parent / "unlabelled.json").write_text(json.dumps(content))
        options = {**OPTIONS, "sam_root": str(BUNDLES / "p2sam")}
        self.app = prepare_online(datalist.parent / "unlabelled.json", folder, BUNDLES / "auxol", options)
        self.stack = ExitStack()
        self.start()

    def start(self) -> None:
        arguments = (self.app, self.folder / "studies", self.folder / "log", "auxol")
        self.url, self.process = self.stack.enter_context(running_process(*arguments))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.stack.close()

    @property
    def studies(self) -> list[str]:
        return sorted(self.truths)

    def box(self, study: str) -> list[int]:
        where = np.argwhere(self.truths[study])
        (i0, j0), (i1, j1) = where.min(axis=0), where.max(axis=0)
        return [int(i1), int(i0), int(j0), int(j1)]  # unsorted, as a viewer may send them

    def ask(self, study: str) -> np.ndarray:
        body = infer(self.url, study, {"roi": self.box(study)}, bundle="auxol")
        return np.asarray(Image.open(io.BytesIO(body))).T != 0

    def label(self, study: str, truth: np.ndarray | None = None) -> Path:
        path = self.folder / f"{study}_correction.png"
        mask = self.truths[study] if truth is None else truth
        Image.fromarray((mask.T * self.value).astype(np.uint8)).save(path)
        return path

    def teach(self, study: str) -> dict:
        self.ask(study)
        return submit(self.url, study, self.label(study))["online"]

    def status(self) -> dict:
        return model_info(self.url, "auxol")["online"]

    def settle(self) -> dict:
        """Wait until everything that was submitted has been learned."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            status = self.status()
            if not status["waiting"]:
                return status
            time.sleep(0.1)
        raise AssertionError(f"still waiting: {status}")

    def journal(self) -> Journal:
        return Journal(next((self.folder / "learning" / "learners").iterdir()), read_only=True)

    def taught(self) -> list[str]:
        if not list((self.folder / "learning").glob("learners/*/journal.jsonl")):
            return []
        return [entry.about["case"]["case"] for entry in self.journal().entries if entry.kind == "correction"]


@pytest.fixture(scope="module")
def online(tmp_path_factory) -> Iterator[Online]:
    server = Online(tmp_path_factory.mktemp("online"))
    try:
        yield server
    finally:
        server.stack.close()


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2.0 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_corrections_raise_the_dice_of_later_cases(online):
    taught, asked = online.studies[:TAUGHT], online.studies[TAUGHT:]
    before = np.array([dice(online.ask(study), online.truths[study]) for study in asked])
    for _ in range(2):  # the second time each label replaces the first
        for study in taught:
            assert online.teach(study)["status"] == "queued"
    status = online.settle()
    assert sum(status["learned"].values()) == 2 * TAUGHT
    after = np.array([dice(online.ask(study), online.truths[study]) for study in asked])
    assert after.mean() > before.mean() + 0.05, (before, after)
    assert set(online.taught()) == set(taught)


def test_a_request_says_what_it_rests_on(online):
    study = online.studies[TAUGHT]
    told = json.loads(infer(online.url, study, {"roi": online.box(study)}, output="json", bundle="auxol"))
    (answer,) = told["answers"]
    assert answer["corrections"] == 2 * TAUGHT
    assert 0 <= answer["alpha"] <= 1
    assert 0 <= answer["trust"] <= 1
    i0, i1, j0, j1 = online.box(study)
    clicked = {"foreground": [[(i0 + i1) // 2, (j0 + j1) // 2]], "background": [[0, 0]]}
    assert json.loads(infer(online.url, study, clicked, output="json", bundle="auxol"))["answers"]


@pytest.mark.parametrize(
    ("params", "words"),
    [({}, "no prompt"), ({"roi": [1, 2]}, "two numbers for each"), ({"foreground": [[9999, 1]]}, "lies outside")],
)
def test_a_request_that_is_none_is_answered_with_a_sentence(online, params, words):
    with pytest.raises(UserError, match=f"answered 422: .*{words}"):
        infer(online.url, online.studies[0], params, bundle="auxol")


def test_labels_that_teach_nothing_are_ignored_with_a_reason(online):
    study, before = online.studies[0], online.journal().entries
    small = np.ones((5, 4), bool)
    empty = np.zeros_like(online.truths[study])
    said = submit(online.url, study, online.label(study, small))["online"]
    assert said["status"] == "ignored"
    assert "5 x 4 voxels" in said["reason"]
    said = submit(online.url, study, online.label(study, empty))["online"]
    assert "is empty" in said["reason"]
    said = submit(online.url, study, online.label(study), tag="draft")["online"]
    assert "tagged 'draft'" in said["reason"]
    assert online.settle()["waiting"] == 0
    assert online.journal().entries == before


def test_the_next_study_is_the_one_of_lowest_trust(online):
    chosen = post(f"{online.url}/activelearning/lowest_trust")
    trusts = {}
    for study in online.studies[TAUGHT:]:
        told = json.loads(infer(online.url, study, {"roi": online.box(study)}, output="json", bundle="auxol"))
        trusts[study] = told["answers"][0]["trust"]
    assert chosen["id"] == min(trusts, key=trusts.__getitem__)


def test_eight_clients_at_once_lose_no_correction(online):
    before = len(online.taught())
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(online.teach, online.studies[:8]))
    assert [one["status"] for one in said] == ["queued"] * 8
    online.settle()
    taught = online.taught()[before:]
    assert sorted(taught) == online.studies[:8]
    online.journal().check()


def test_a_killed_server_loses_no_submitted_correction(online):
    before = len(online.taught())
    for study in online.studies[:5]:
        online.ask(study)
    said = [submit(online.url, study, online.label(study))["online"] for study in online.studies[:5]]
    online.kill()
    assert {one["status"] for one in said} == {"queued"}
    online.start()
    online.settle()
    assert sorted(online.taught()[before:]) == online.studies[:5]
    online.journal().check()


def test_training_is_a_replay_of_the_last_labels_by_the_server_itself(online):
    submit(online.url, online.studies[TAUGHT], online.label(online.studies[TAUGHT]))
    online.settle()
    post(f"{online.url}/train/auxol")  # a process of its own, as a viewer's button starts it
    end = time.monotonic() + 120
    while time.monotonic() < end and get(f"{online.url}/train/")["status"] not in ("DONE", "ERROR"):
        time.sleep(0.5)
    assert get(f"{online.url}/train/")["status"] == "DONE"
    entries = online.journal().entries
    undone = {entry.target for entry in entries if entry.kind == "undo"}
    left = [entry.about["case"]["case"] for entry in entries if _counts(entry, undone)]
    assert sorted(left) == sorted(set(online.taught()))  # one label of each
    assert online.studies[TAUGHT] in left


def _counts(entry, undone: set[int]) -> bool:
    return entry.kind == "correction" and entry.number not in undone


def post(url: str) -> dict:
    request = urllib.request.Request(url, data=b"{}", method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)
