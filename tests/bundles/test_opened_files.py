"""How often a run opens its files: checks, keys of finished cases, masks, metrics and run.json share what was read."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from monai_ext.data.provenance import WeightRecord, write_record
from monai_ext.files import CLOCK_TICK

FAST = {"n_pos": [1, 2], "n_neg": [1, 1]}
_counters: list[Counter[str]] = []


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        for counter in _counters:
            counter[os.fspath(arguments[0])] += 1


sys.addaudithook(_count)  # it cannot be removed, and does nothing without a counter


@contextmanager
def count_opens() -> Iterator[Counter[str]]:
    """Count how often each file is opened, by whatever library."""
    counter: Counter[str] = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def write_frames(folder: Path) -> dict[str, Any]:
    """A data list of two pictures with a disc."""
    x, y = np.mgrid[:40, :48]
    cases = []
    for visit in range(2):
        label = (np.hypot(x - 19, y - 22 - visit) < 9).astype(np.uint8)
        Image.fromarray(np.stack([100 * label + x.astype(np.uint8)] * 3, axis=-1)).save(folder / f"image{visit}.png")
        Image.fromarray(label).save(folder / f"label{visit}.png")
        case = {"case": f"frame{visit}", "patient": "p", "visit": visit}
        cases.append({**case, "image": f"image{visit}.png", "label": f"label{visit}.png"})
    return {"dataset": "small", "modality": "endoscopy", "labels": {"disc": 1}, "cases": cases}


@pytest.fixture(params=["volumes", "frames"])
def listed(request, tmp_path, write_list) -> str:
    content = request.getfixturevalue("patient") if request.param == "volumes" else write_frames(tmp_path)
    return write_list(content)


@pytest.fixture
def weights(tmp_path, tiny_weights) -> Path:
    """Weights with a record, whose checksum is compared."""
    path = tmp_path / "tiny.pt"
    path.write_bytes(tiny_weights.read_bytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = {"name": "tiny", "variant": "compact", "datasets": [], "command": "-", "licence": "-", "sha256": digest}
    write_record(path, WeightRecord.model_validate(record))
    time.sleep(2 * CLOCK_TICK)  # what was written just now is not remembered
    return path


def inputs(datalist: str) -> list[Path]:
    cases = json.loads(Path(datalist).read_text())["cases"]
    return [Path(datalist).parent / case[key] for case in cases for key in ("image", "label")]


def test_an_evaluation_opens_each_file_twice(
    listed: str, weights: Path, tmp_path: Path, run_bundle: Callable[..., None]
) -> None:
    options = {**FAST, "datalist": listed, "output_dir": str(tmp_path / "out"), "checkpoint": str(weights)}
    with count_opens() as opens:
        run_bundle("p2sam", "inference", "evaluate", **options)
    files = [*inputs(listed), weights]
    expected = {path.name: 2 for path in inputs(listed)} | {weights.name: 3}  # checks, run; checksum, kind, contents
    expected[inputs(listed)[1].name] += 1  # the reference's label again, for its volumes
    assert {path.name: opens[str(path)] for path in files} == expected
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    recorded = {Path(entry["path"]).name: entry["sha256"] for entry in [*record["inputs"], record["checkpoint"]]}
    assert recorded == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    with count_opens() as opens:
        run_bundle("p2sam", "inference", "evaluate", **options)  # all cases are finished
    assert max(opens[str(path)] for path in inputs(listed)) == 0, "known from the first run, in the same process"


def test_run_json_has_the_checksum_of_a_file_that_changed_during_the_run(
    patient: dict[str, Any],
    write_list: Callable[[dict[str, Any]], str],
    tmp_path: Path,
    load_bundle: Callable[..., Any],
) -> None:
    datalist = write_list(patient)
    workflow = load_bundle("p2sam", "inference", **FAST, datalist=datalist, output_dir=str(tmp_path / "out"))
    changed = tmp_path / "image1.nii.gz"
    content = bytearray(changed.read_bytes())
    before = hashlib.sha256(content).hexdigest()
    content[4] ^= 1  # the time in gzip's header: the file keeps its size and its voxels
    changed.write_bytes(content)
    workflow.run()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    [entry] = [entry for entry in record["inputs"] if Path(entry["path"]).name == changed.name]
    assert entry["sha256"] == hashlib.sha256(content).hexdigest() != before
