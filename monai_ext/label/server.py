"""A MONAI Label server as a process of its own, on this machine alone, and requests to it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_ext.errors import UserError

ADDRESS = "127.0.0.1"
SECONDS_TO_START = 600  # 20 to 30 alone on two cores; most of it reads packages


def monailabel_command() -> list[str]:
    """Return the command that runs MONAI Label with this Python; its own script takes the first Python in PATH."""
    if importlib.util.find_spec("monailabel") is None:
        raise UserError(f"MONAI Label is not installed for {sys.executable}: `make label-install` makes .venv-label.")
    return [sys.executable, "-m", "monailabel.main"]


def server_command(app: Path, studies: Path, port: int, bundle: str = "p2sam") -> list[str]:
    """Return the command line that serves ``bundle`` on this machine alone, and needs no network.

    Several bundles of the app are named with commas between.
    """
    confs = {"models": bundle, "zoo_source": "local", "sam2": "false", "skip_trainers": "true"}
    words = [word for name, value in confs.items() for word in ("--conf", name, value)]
    where = ["--app", str(app), "--studies", str(studies)]
    return [*monailabel_command(), "start_server", *where, *words, "--host", ADDRESS, "--port", str(port)]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((ADDRESS, 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(
    app: Path, studies: Path, log: Path, bundle: str = "p2sam", env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start a server and yield its address; see :func:`running_process`."""
    with running_process(app, studies, log, bundle, env) as (url, _):
        yield url


@contextmanager
def running_process(
    app: Path, studies: Path, log: Path, bundle: str = "p2sam", env: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Start a server on a free port, wait until it answers, yield its address and process; it is ended in all cases.

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
            yield url, process
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


def submit(url: str, study: str, label: Path, tag: str = "final", params: Mapping[str, Any] | None = None) -> Any:
    """Submit a study's label as a viewer does and return the answer, JSON.

    Raises:
        UserError: the server answered with an error; holds its sentence.
    """
    boundary = "----label"
    field = f"--{boundary}\r\nContent-Disposition: form-data; name="
    head = f'{field}"params"\r\n\r\n{json.dumps(dict(params or {}))}\r\n'
    head += f'{field}"label"; filename="{label.name}"\r\n\r\n'
    body = head.encode() + label.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    query = urllib.parse.urlencode({"image": study, "tag": tag})
    request = urllib.request.Request(f"{url}/datastore/label?{query}", data=body, method="PUT")
    request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        raise UserError(f"MONAI Label answered {error.code}: {said}") from error


def model_info(url: str, model: str) -> Any:
    """Return what the server tells viewers of a model, JSON."""
    with urllib.request.urlopen(f"{url}/info/", timeout=600) as answer:
        return json.load(answer)["models"][model]
