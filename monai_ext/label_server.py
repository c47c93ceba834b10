"""MONAI Label on a data list: ``python -m monai_ext.label_server LIST.json --output_dir DIR`` prepares it.

DIR gets ``studies`` (links to the images, named after their cases, labels of annotated visits as ``final`` labels, the
data list) and ``apps/monaibundle``, MONAI Label's own app with a copy of the bundle's configs in which the structures
have the data list's names, so that viewers show them. The command then prints how to start the server; ``--demo``
starts it on a phantom patient, asks for one mask and compares it with ``python -m monai.bundle run``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from monai_ext.data.images import FRAME_SUFFIXES, VOLUME_SUFFIXES, is_frame, read_geometry, read_label
from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.phantoms import write_phantom_patient
from monai_ext.data.studies import DATALIST, FINAL
from monai_ext.data.text import read_json
from monai_ext.errors import UserError, report_user_errors
from monai_ext.files import atomic_path

ADDRESS = "127.0.0.1"
SECONDS_TO_START = 600  # 20 to 30 alone on two cores; most of it reads packages
DEMO_WEIGHTS = "compact_chaos"  # has learned from phantoms, which the default weights are poor on
AFFINE_ERROR = 1e-4
"""mm: MONAI Label writes NIfTI through ITK, which keeps single precision."""


def prepare(datalist: str | os.PathLike, folder: str | os.PathLike, bundle: str | os.PathLike) -> Path:
    """Lay out studies and app for a data list; labels that were saved there before are kept.

    Args:
        datalist: its cases become studies.
        folder: where to.
        bundle: the bundle to serve.

    Returns:
        The folder of the app.

    Raises:
        UserError: the list is not usable, or the folder holds other studies of the same name.
    """
    cases = load_datalist(datalist)
    folder, bundle = Path(folder).absolute(), Path(bundle).absolute()
    studies = folder / "studies"
    (studies / "labels" / FINAL).mkdir(parents=True, exist_ok=True)
    for case in cases.cases:
        _link(Path(case.image), studies / f"{case.case}{_suffix(case.image)}")
        if case.label is not None:
            saved = studies / "labels" / FINAL / f"{case.case}{_suffix(case.label)}"
            if not saved.exists():
                shutil.copyfile(case.label, saved)
    _write(studies / DATALIST, cases.model_dump(mode="json", exclude_none=True))
    return _app(folder / "apps" / "monaibundle", bundle, cases)


def _link(image: Path, study: Path) -> None:
    if study.is_symlink() and study.resolve() == image.resolve():
        return
    if study.exists() or study.is_symlink():
        raise UserError(f"{study} is another file than {image}: choose another --output_dir, or take the study away.")
    study.symlink_to(image.resolve())


def _suffix(file: str) -> str:
    name = Path(file).name
    known = sorted((*VOLUME_SUFFIXES, *FRAME_SUFFIXES), key=len, reverse=True)
    return next(name[-len(suffix) :] for suffix in known if name.lower().endswith(suffix))


def _app(app: Path, bundle: Path, cases: DataList) -> Path:
    if not (app / "main.py").is_file():
        shutil.rmtree(app, ignore_errors=True)
        command = [*_command(), "apps", "--download", "--name", "monaibundle", "--output", str(app.parent)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    served = app / "model" / bundle.name
    shutil.rmtree(served, ignore_errors=True)
    shutil.copytree(bundle / "configs", served / "configs")
    for name in ("models", "docs", "LICENSE"):
        (served / name).symlink_to(bundle / name)
    metadata = read_json(bundle / "configs" / "metadata.json")
    formats = metadata["network_data_format"]
    named = {str(value): name for name, value in cases.labels.items()}
    formats["outputs"]["pred"]["channel_def"] = {"0": "background", **named}
    if not is_frame(cases.cases[0].image):  # the server tells viewers 2-D or 3-D by this length
        formats["inputs"]["image"]["spatial_shape"] = [*formats["inputs"]["image"]["spatial_shape"], 1]
    _write(served / "configs" / "metadata.json", metadata)
    return app


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _command() -> list[str]:
    """This very Python's MONAI Label; its own script takes whichever Python comes first in PATH."""
    if importlib.util.find_spec("monailabel") is None:
        raise UserError(f"MONAI Label is not installed for {sys.executable}: `make label-install` makes .venv-label.")
    return [sys.executable, "-m", "monailabel.main"]


def server_command(app: Path, studies: Path, port: int, bundle: str = "p2sam") -> list[str]:
    """Return the command line that serves ``bundle`` on this machine alone, without a look at the network.

    Several bundles of the app are named with commas between.
    """
    confs = {"models": bundle, "zoo_source": "local", "sam2": "false", "skip_trainers": "true"}
    words = [word for name, value in confs.items() for word in ("--conf", name, value)]
    where = ["--app", str(app), "--studies", str(studies)]
    return [*_command(), "start_server", *where, *words, "--host", ADDRESS, "--port", str(port)]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((ADDRESS, 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(
    app: Path, studies: Path, log: Path, bundle: str = "p2sam", env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start a server on a free port, wait until it answers, yield its address; it is ended in all cases.

    Args:
        app: the app's folder.
        studies: the studies' folder.
        log: file that the server's output goes to; its folder is the server's working directory.
        bundle: see :func:`server_command`.
        env: further environment variables.

    Raises:
        UserError: the server ended or did not answer in time; ends with the last line of its log.
    """
    port = free_port()
    url = f"http://{ADDRESS}:{port}"
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            server_command(app, studies, port, bundle),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**os.environ, **(env or {})},
        )
        try:
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/info/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    how = "did not answer" if process.poll() is None else f"ended with exit code {process.poll()}"
    said = (
        [line for line in lines if "monai_ext" in line] or [line for line in lines if "Error" in line] or lines or [""]
    )
    raise UserError(f"MONAI Label {how}: {said[-1]} (all of it: {log}).")


def infer(url: str, study: str, params: Mapping[str, Any], output: str = "image", bundle: str = "p2sam") -> bytes:
    """Ask for a study's mask and return the body of the answer.

    Raises:
        UserError: the server answered with an error; holds its sentence.
    """
    query = urllib.parse.urlencode({"image": study, "output": output})
    body = urllib.parse.urlencode({"params": json.dumps(dict(params))}).encode()
    try:
        with urllib.request.urlopen(f"{url}/infer/{bundle}?{query}", data=body, timeout=600) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        raise UserError(f"MONAI Label answered {error.code}: {said}") from error


def demo(folder: Path, bundle: Path) -> None:
    """Serve the phantom patient's second visit and compare with the same visit run by ``python -m monai.bundle run``.

    Raises:
        UserError: the masks or their affines differ.
    """
    datalist = write_phantom_patient(folder / "phantom")
    app = prepare(datalist, folder, bundle)
    study = load_datalist(datalist).cases[1].case
    served = folder / f"{study}_served.nii.gz"
    with running(app, folder / "studies", folder / "server.log", bundle.name) as url:
        print(f"MONAI Label is at {url}; asking for {study}")
        served.write_bytes(
            infer(url, study, {"device": "cpu", "model_filename": f"{DEMO_WEIGHTS}.pt"}, bundle=bundle.name)
        )
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", f"['{bundle / 'configs' / 'inference.yaml'}']", "--bundle_root", str(bundle)]
    command += ["--datalist", str(datalist), "--output_dir", str(folder / "run"), "--device", "cpu"]
    command += ["--checkpoint", DEMO_WEIGHTS]
    subprocess.run(command, check=True)
    expected = folder / "run" / "masks" / f"{study}.nii.gz"
    difference = compare(served, expected)
    print(f"{served}: identical to {expected}, affines within {difference:.0e} mm")


def compare(served: Path, expected: Path) -> float:
    """Return the largest difference of two masks' affines, in mm.

    Raises:
        UserError: voxels differ, or the affines by more than :data:`AFFINE_ERROR`.
    """
    one, other = read_label(served), read_label(expected)
    if not one.any() or one.shape != other.shape or not np.array_equal(one, other):
        same = one.any() and one.shape == other.shape
        wrong = f"{(one != other).sum()} voxels differ" if same else "it is empty or of another shape"
        raise UserError(f"{served} is not {expected}: {wrong}; this is a fault of the bundle, please report it.")
    affines = [read_geometry(path).affine for path in (served, expected)]
    difference = 0.0 if affines[0] is None or affines[1] is None else float(abs(affines[0] - affines[1]).max())
    if difference > AFFINE_ERROR:
        raise UserError(f"the affines of {served} and {expected} differ by {difference:.2g} mm.")
    return difference


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, or run the demo."""
    report_user_errors()
    parser = argparse.ArgumentParser(
        prog="python -m monai_ext.label_server", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("datalist", nargs="?", help="data list whose cases become studies")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/label"))
    parser.add_argument("--bundle", type=Path, default=Path("bundles/p2sam"))
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--demo", action="store_true", help="serve a phantom patient and check its mask")
    given = parser.parse_args(arguments)
    if not (given.bundle / "configs" / "inference.yaml").is_file():
        raise UserError(f"{given.bundle} is no bundle: give --bundle the folder that holds configs/inference.yaml.")
    if given.demo:
        demo(given.output_dir.absolute(), given.bundle.absolute())
    elif given.datalist is None:
        raise UserError("no data list: name one, or --demo for a phantom patient.")
    else:
        app = prepare(given.datalist, given.output_dir, given.bundle)
        print(shlex.join(server_command(app, given.output_dir.absolute() / "studies", given.port, given.bundle.name)))


if __name__ == "__main__":
    main()
