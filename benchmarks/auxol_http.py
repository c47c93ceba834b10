"""A MONAI Label server that learns, over HTTP, with a kill in between: what is gained, and what is lost.

``.venv-label/bin/python benchmarks/auxol_http.py [--datalist LIST.json] [--prompt point] [--option
checkpoint=NAME]``, in MONAI Label's environment (``make label-install``); without a list it draws phantoms.

Of the first 2 n images (``--taught`` n, 20) the second n are asked for before and after. The first n are asked for
and their true masks submitted: half of them one after the other, then the server is killed with -9 and started again;
the other half by eight clients at once. Prompts are those of a simulated user: the box of the true mask, or its
centre. Ends with 1 where a correction is lost or learned twice, or the later images are no better.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_ext.data.images import read_label
from monai_ext.data.manifest import load_datalist
from monai_ext.data.phantoms import write_phantom_stream
from monai_ext.engines.online.journal import Journal
from monai_ext.inferers.simulated_user import centre_point
from monai_ext.label.layout import prepare_online
from monai_ext.label.server import infer, model_info, running_process, submit

ROOT = Path(__file__).parents[1]
CLIENTS = 8
Mask = NDArray[np.bool_]


class Session:
    """A server on pictures, and a user who knows the true masks.

    Args:
        datalist: pictures (PNG) with labels.
        folder: for the server's files.
        prompt: ``box`` or ``point``.
        options: of the bundle's inference.yaml.
    """

    def __init__(self, datalist: Path, folder: Path, prompt: str, options: dict[str, Any]) -> None:
        cases = load_datalist(datalist)
        self.folder, self.prompt, self.value = folder, prompt, next(iter(cases.labels.values()))
        self.truths = {case.case: read_label(str(case.label)) != 0 for case in cases.cases}
        content = json.loads(datalist.read_text(encoding="utf-8"))
        for case in content["cases"]:
            case["image"] = str((datalist.parent / case["image"]).resolve())
            case.pop("label")  # the server never sees a label that was not submitted
        unlabelled = folder / "unlabelled.json"
        unlabelled.write_text(json.dumps(content), encoding="utf-8")
        self.app = prepare_online(unlabelled, folder, ROOT / "bundles" / "auxol", {**options, "prompt": prompt})
        self.stack = ExitStack()

    def start(self) -> None:
        """Start the server, again or for the first time."""
        arguments = (self.app, self.folder / "studies", self.folder / "log", "auxol")
        self.url, self.process = self.stack.enter_context(running_process(*arguments))

    def kill(self) -> None:
        """Kill the server as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.stack.close()

    def ask(self, study: str) -> float:
        """Ask for a mask; returns its Dice."""
        truth = self.truths[study]
        where = np.argwhere(truth)
        (i0, j0), (i1, j1) = where.min(axis=0).tolist(), where.max(axis=0).tolist()
        point = [int(index) for index in reversed(centre_point(truth))]
        params = {"roi": [i0, i1, j0, j1]} if self.prompt == "box" else {"foreground": [point]}
        mask: Mask = np.asarray(Image.open(io.BytesIO(infer(self.url, study, params, bundle="auxol")))).T != 0
        return 2.0 * float((mask & truth).sum()) / float(mask.sum() + truth.sum())

    def teach(self, study: str) -> str:
        """Ask for a mask and submit the true one; returns what becomes of it."""
        self.ask(study)
        path = self.folder / f"{study}_correction.png"
        Image.fromarray((self.truths[study].T * self.value).astype(np.uint8)).save(path)
        return str(submit(self.url, study, path)["online"]["status"])

    def settle(self) -> None:
        """Wait until all that was submitted is learned."""
        while model_info(self.url, "auxol")["online"]["waiting"]:
            time.sleep(0.2)

    def taught(self) -> Counter[str]:
        """Count the corrections in the journal by study, after a check of every file."""
        journal = Journal(next((self.folder / "learning" / "learners").iterdir()), read_only=True)
        journal.check()
        return Counter(entry.about["case"]["case"] for entry in journal.entries if entry.about)


def run(session: Session, taught: Sequence[str], asked: Sequence[str]) -> bool:
    """Run the session and print it; whether nothing was lost and something gained."""
    half = len(taught) // 2
    session.start()
    before = [session.ask(study) for study in asked]
    said = [session.teach(study) for study in taught[:half]]
    session.kill()
    print(f"{half} corrections submitted ({Counter(said)}), server killed with -9", flush=True)
    session.start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        said = list(pool.map(session.teach, taught[half:]))
    session.settle()
    print(f"{len(taught) - half} submitted by {CLIENTS} clients at once ({Counter(said)})")
    found = session.taught()
    print(f"journal: {sum(found.values())} corrections of {len(found)} studies, each file as its sha256")
    after = [session.ask(study) for study in asked]
    better = sum(one > other for one, other in zip(after, before, strict=True))
    print(
        f"{session.prompt}: mean Dice of the next {len(asked)} images {np.mean(before):.3f} before, "
        f"{np.mean(after):.3f} after; better in {better}"
    )
    return found == Counter(taught) and float(np.mean(after)) > float(np.mean(before))


def main() -> int:
    """Run the command line; 1 where something is lost, or nothing gained."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datalist", type=Path)
    parser.add_argument("--taught", type=int, default=20)
    parser.add_argument("--prompt", default="box", choices=("box", "point"))
    parser.add_argument("--option", nargs="*", default=[], metavar="NAME=VALUE", help="of inference.yaml")
    options = parser.parse_args()
    if importlib.util.find_spec("monailabel") is None:
        print("left out: MONAI Label is not installed here; `make label-install` makes its environment")
        return 0
    given: dict[str, Any] = {
        "checkpoint": "compact_chaos",
        "sam_root": str(ROOT / "bundles" / "p2sam"),
        "device": "cpu",
    }
    given |= {name: float(value) if value[:1].isdigit() else value for name, value in map(_split, options.option)}
    with tempfile.TemporaryDirectory() as folder:
        datalist = options.datalist or write_phantom_stream(Path(folder) / "images", n=2 * options.taught)
        session = Session(datalist, Path(folder), options.prompt, given)
        studies = list(session.truths)
        order = np.random.default_rng(0).permutation(len(studies))[: 2 * options.taught]
        chosen = [studies[number] for number in order]
        try:
            kept = run(session, chosen[: options.taught], chosen[options.taught :])
        finally:
            session.stack.close()
    return 0 if kept else 1


def _split(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


if __name__ == "__main__":
    raise SystemExit(main())
