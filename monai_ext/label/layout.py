"""Studies and app of a MONAI Label server, made of a data list.

The folder gets ``studies`` (links to the images, named after their cases, labels of annotated visits as ``final``
labels, the data list) and ``apps/monaibundle``, MONAI Label's own app with a copy of the bundle's configs in which the
structures have the data list's names, so that viewers show them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_ext.data.images import FRAME_SUFFIXES, VOLUME_SUFFIXES, is_frame
from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.studies import DATALIST, FINAL
from monai_ext.data.text import read_json
from monai_ext.errors import UserError
from monai_ext.files import atomic_path
from monai_ext.label.server import monailabel_command

ONLINE_OPTIONS = "online.json"
MAIN = """from monai_ext.label.online_app import OnlineApp

__all__ = ["OnlineApp"]
"""


def prepare(
    datalist: str | os.PathLike, folder: str | os.PathLike, bundle: str | os.PathLike, weights: str | None = None
) -> Path:
    """Lay out studies and app for a data list; labels that were saved there before are kept.

    Args:
        datalist: its cases become studies.
        folder: where to.
        bundle: the bundle to serve.
        weights: name of the file in the bundle's ``models`` that is served, such as "compact_acdc"; None: ``model.pt``.

    Returns:
        The folder of the app.

    Raises:
        UserError: the list is not usable, the folder holds other studies of the same name, or there are no such
            weights.
    """
    cases = load_datalist(datalist)
    folder, bundle = Path(folder).absolute(), Path(bundle).absolute()
    if weights is not None and not (bundle / "models" / f"{weights}.pt").is_file():
        there = sorted(path.stem for path in (bundle / "models").glob("*.pt"))
        raise UserError(f"there are no weights {weights!r} in {bundle / 'models'}: choose one of {', '.join(there)}.")
    _lay_out(cases, folder / "studies")
    return _app(folder / "apps" / "monaibundle", bundle, cases, weights)


def prepare_online(
    datalist: str | os.PathLike,
    folder: str | os.PathLike,
    bundle: str | os.PathLike,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Lay out studies and an app that learns from submitted labels; what was learned there before is kept.

    Args:
        datalist: see :func:`prepare`.
        folder: where to; the learners are in ``learning``.
        bundle: the bundle of an online method.
        options: of its inference.yaml.

    Returns:
        The folder of the app.

    Raises:
        UserError: see :func:`prepare`.
    """
    cases = load_datalist(datalist)
    folder, bundle = Path(folder).absolute(), Path(bundle).absolute()
    _lay_out(cases, folder / "studies")
    app = folder / "apps" / "online"
    app.mkdir(parents=True, exist_ok=True)
    with atomic_path(app / "main.py") as temporary:
        temporary.write_text(MAIN, encoding="utf-8")
    content = {
        "bundle": str(bundle),
        "datalist": str(folder / "studies" / DATALIST),
        "folder": str(folder / "learning"),
        "labels": dict(cases.labels),
        "dimension": 2 if is_frame(cases.cases[0].image) else 3,
        "options": dict(options or {}),
    }
    _write(app / ONLINE_OPTIONS, content)
    return app


def _lay_out(cases: DataList, studies: Path) -> None:
    (studies / "labels" / FINAL).mkdir(parents=True, exist_ok=True)
    for case in cases.cases:
        _link(Path(case.image), studies / f"{case.case}{_suffix(case.image)}")
        if case.label is not None:
            saved = studies / "labels" / FINAL / f"{case.case}{_suffix(case.label)}"
            if not saved.exists():
                shutil.copyfile(case.label, saved)
    _write(studies / DATALIST, cases.model_dump(mode="json", exclude_none=True))


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


def _app(app: Path, bundle: Path, cases: DataList, weights: str | None = None) -> Path:
    if not (app / "main.py").is_file():
        shutil.rmtree(app, ignore_errors=True)
        command = [*monailabel_command(), "apps", "--download", "--name", "monaibundle", "--output", str(app.parent)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    served = app / "model" / bundle.name
    shutil.rmtree(served, ignore_errors=True)
    shutil.copytree(bundle / "configs", served / "configs")
    for name in ("docs", "LICENSE"):
        (served / name).symlink_to(bundle / name)
    if weights is None:
        (served / "models").symlink_to(bundle / "models")
    else:  # the server reads model.pt, and the network is built for it
        (served / "models").mkdir()
        (served / "models" / "model.pt").symlink_to(bundle / "models" / f"{weights}.pt")
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
