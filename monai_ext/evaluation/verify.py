"""Check the files of a run against its record: ``python -m monai_ext.evaluation.verify OUT/run.json``.

Every input, the weights and every output are hashed again. The output folder may have been moved (outputs lie
beside ``run.json``); where the data lie elsewhere, ``--data_root`` says so. The exit code is 0 where all bytes
agree and 1 otherwise, also of a record that names no file. Other versions of packages or code here are told, but
are no failure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from monai_ext.errors import report_user_errors
from monai_ext.evaluation.record import (
    REPOSITORY,
    RUN_FILE,
    PathLike,
    code_version,
    output_files,
    package_versions,
    read_record,
)
from monai_ext.evaluation.summary import layout
from monai_ext.files import sha256_of

State = Literal["ok", "changed", "missing", "unreadable"]
KINDS = ("data list", "input", "weights", "output")
PLURALS = {"data list": "data list", "input": "inputs", "weights": "weights", "output": "outputs"}


@dataclass(frozen=True)
class CheckedFile:
    """One file of a record: what it is, where it was looked for and what was found."""

    kind: str
    path: str
    looked_for: str
    state: State
    sha256: str
    found_sha256: str | None = None
    bytes: int | None = None
    found_bytes: int | None = None


@dataclass(frozen=True)
class Verification:
    """What became of a run's files.

    Attributes:
        record: the ``run.json``.
        files: every file that it names.
        unrecorded: files in the output folder that it does not name.
        versions: name -> (recorded, here), where they differ.
        notes: sentences for a reader.
    """

    record: str
    files: tuple[CheckedFile, ...]
    unrecorded: tuple[str, ...]
    versions: Mapping[str, tuple[Any, Any]]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether all recorded bytes are here, unchanged; a record that names no file proves nothing."""
        return bool(self.files) and all(file.state == "ok" for file in self.files)


def verify(
    path: PathLike,
    data_root: PathLike | None = None,
    datalist: PathLike | None = None,
    checkpoint: PathLike | None = None,
) -> Verification:
    """Hash the files of a run again.

    Args:
        path: the ``run.json``, or the folder that holds it.
        data_root: where the data lie now; None: where they lay.
        datalist: where the data list lies now; None: where it lay.
        checkpoint: where the weights lie now; None: where they lay.

    Returns:
        What agrees, what changed, what is missing.

    Raises:
        UserError: where there is no such record.
    """
    path = Path(path)
    path = path / RUN_FILE if path.is_dir() else path
    record = read_record(path)
    bases = _bases(path, record, data_root)
    moved = {"data list": datalist, "weights": checkpoint}
    files = tuple(_check(kind, entry, bases, moved.get(kind)) for kind, entry in _entries(record))
    named = {entry["path"] for _, entry in _entries(record) if entry.get("in") == "output_dir"}
    there = [file.relative_to(path.parent).as_posix() for file in output_files(path.parent)]
    return Verification(
        record=str(path),
        files=files,
        unrecorded=tuple(name for name in there if name not in named),
        versions=_differences(record),
        notes=tuple(_notes(record, files, bases)),
    )


def format_verification(result: Verification) -> str:
    """Lay out what was found as plain text, the last line a verdict."""
    lines = [["", "files", "agree", "changed", "missing", "unreadable"]]
    for kind in KINDS:
        states = Counter(file.state for file in result.files if file.kind == kind)
        if states:
            counts = [states["ok"], states["changed"], states["missing"], states["unreadable"]]
            lines.append([PLURALS[kind], str(sum(counts)), *map(str, counts)])
    parts = [layout(lines)]
    bad = [file for file in result.files if file.state != "ok"]
    if bad:
        parts.append("\n".join(f"{file.state}: {_described(file)}" for file in bad))
    if result.versions:
        told = [[name, str(then), str(here)] for name, (then, here) in result.versions.items()]
        parts.append("other versions than then (no failure):\n" + layout([["", "then", "here"], *told]))
    if result.unrecorded:
        names = ", ".join(result.unrecorded[:3]) + (", ..." if len(result.unrecorded) > 3 else "")
        other = f"{len(result.unrecorded)} other file{'s' if len(result.unrecorded) > 1 else ''}"
        parts.append(f"not of this run: {other} in the folder ({names})")
    parts += [f"note: {note}" for note in result.notes]
    verdict = f"all {len(result.files)} files agree" if result.files else "it names no file, so nothing can be checked"
    if bad:
        verdict = f"{len(bad)} of {len(result.files)} files {'do' if len(bad) > 1 else 'does'} not agree"
    return "\n\n".join([*parts, f"{result.record}: {verdict}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m monai_ext.evaluation.verify", description=__doc__)
    parser.add_argument("record", metavar=RUN_FILE, help="of the run, or its output folder")
    parser.add_argument("--data_root", metavar="DIR", help="where the data lie now (default: where they lay)")
    parser.add_argument("--datalist", metavar="FILE", help="where the data list lies now (default: where it lay)")
    parser.add_argument("--checkpoint", metavar="FILE", help="where the weights lie now (default: where they lay)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    options = parser.parse_args(arguments)

    result = verify(options.record, options.data_root, options.datalist, options.checkpoint)
    if options.json:
        print(json.dumps({"agrees": result.agrees, **asdict(result)}, indent=2, ensure_ascii=False))
    else:
        print(format_verification(result))
    if not result.agrees:
        sys.exit(1)


def _entries(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    datalist = (record.get("data") or {}).get("datalist")
    if datalist:
        yield "data list", datalist
    yield from (("input", entry) for entry in record["inputs"])
    if record.get("checkpoint"):
        yield "weights", record["checkpoint"]
    yield from (("output", entry | {"in": "output_dir"}) for entry in record["outputs"])


def _bases(path: Path, record: Mapping[str, Any], data_root: PathLike | None) -> dict[str, Path]:
    root = data_root if data_root is not None else (record.get("data") or {}).get("root")
    bases = {"output_dir": path.parent, "repository": REPOSITORY}
    return bases if root is None else bases | {"data_root": Path(root).expanduser()}


def _check(kind: str, entry: Mapping[str, Any], bases: Mapping[str, Path], moved_to: PathLike | None) -> CheckedFile:
    path = Path(moved_to) if moved_to is not None else bases.get(entry.get("in") or "", Path()) / entry["path"]
    state: State = "ok"
    size, digest = None, None
    try:
        size = path.stat().st_size
        digest = sha256_of(path)
        state = "ok" if digest == entry["sha256"] else "changed"
    except FileNotFoundError:
        state = "missing"
    except OSError:
        state = "unreadable"
    return CheckedFile(kind, entry["path"], str(path), state, entry["sha256"], digest, entry.get("bytes"), size)


def _described(file: CheckedFile) -> str:
    if file.state == "missing":
        return f"{file.kind} {file.path} (looked for {file.looked_for})"
    if file.found_bytes != file.bytes:
        return f"{file.kind} {file.path} ({file.bytes} bytes then, {file.found_bytes} now)"
    return f"{file.kind} {file.path} ({file.bytes} bytes, others than then)"


def _differences(record: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    then, here = dict(record.get("versions") or {}), dict(package_versions())
    commit = (record.get("code") or {}).get("commit")
    if commit is not None:
        then["commit"], here["commit"] = commit, code_version()["commit"]
    return {name: (value, here.get(name)) for name, value in then.items() if value != here.get(name)}


def _notes(record: Mapping[str, Any], files: Sequence[CheckedFile], bases: Mapping[str, Path]) -> Iterator[str]:
    root = bases.get("data_root")
    missing = [Path(file.looked_for) for file in files if file.state == "missing"]
    if root is not None and not root.is_dir() and any(path.is_relative_to(root) for path in missing):
        yield f"there is no folder {root}; name the folder of the data with --data_root"
    if (record.get("code") or {}).get("dirty"):
        yield "the code of this run differed from its commit"


if __name__ == "__main__":
    report_user_errors()
    main()
