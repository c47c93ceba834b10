"""Examining a data list or a folder: all checks, nothing stops at the first mistake."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from tqdm import tqdm

from monai_ext.data.doctor import files, geometry, manifest, patients, values
from monai_ext.data.doctor.dicom import CHECKS as FOLDER_CHECKS
from monai_ext.data.doctor.dicom import read_folder
from monai_ext.data.doctor.facts import LABEL_KEYS, FileFacts, ListFacts, Use, files_of, read_facts
from monai_ext.data.doctor.findings import Check, Finding, run_checks
from monai_ext.data.doctor.glance import is_doubtful
from monai_ext.data.manifest import DataList
from monai_ext.data.picture_header import PictureHeader
from monai_ext.files import PathLike

LIST_CHECKS: list[Check[ListFacts]] = [
    *manifest.CHECKS,
    *files.CHECKS,
    *geometry.CHECKS,
    *values.CHECKS,
    *patients.CHECKS,
]

WORKERS = min(2, os.cpu_count() or 1)

Wants: TypeAlias = Callable[[PictureHeader | None], bool]


def examine(
    source: PathLike | DataList,
    data_root: PathLike | None = None,
    *,
    split: str | None = None,
    fold: int | None = None,
    fast: bool = True,
    glance: bool = False,
    only: Collection[PathLike] | None = None,
    leave_out: Collection[str] = (),
    follow_up: bool | None = None,
) -> list[Finding]:
    """Examine a data list.

    Args:
        source: the JSON file, or what :func:`~monai_ext.data.manifest.load_datalist` made of it (with absolute paths;
            ``data_root``, ``split`` and ``fold`` do not matter then).
        data_root: folder that relative paths refer to (default: the list's folder).
        split: examine the cases of this split.
        fold: examine the cases of this fold.
        fast: read headers only, about 2 ms a file; what only voxels tell is not looked for.
        glance: besides the headers, read the files whose values a run may take for something else: scribbles, pictures
            of more than 8 bits, volumes whose first slices do not look like their modality.
        only: examine no other files than these; a run names those that it will open.
        leave_out: codes of checks that do not matter.
        follow_up: whether later visits are to be segmented from an annotated one, so that it is an error if there are
            none; None: if the list names patients, and no scribble, split or fold.

    Returns:
        What was found, errors first. No error means that nothing stops a run.

    Raises:
        UserError: ``data_root`` is no folder, or there is no such split or fold.
    """
    facts = read_facts_of(
        source, data_root, split=split, fold=fold, fast=fast, glance=glance, only=only, follow_up=follow_up
    )
    return run_checks([check for check in LIST_CHECKS if check.code not in leave_out], facts)


def examine_folder(folder: PathLike) -> list[Finding]:
    """Examine a folder of DICOM files by their headers.

    Returns:
        What was found, errors first. Without an error, every series but localisers can be read as a volume.

    Raises:
        UserError: there is no such folder, or the extra ``dicom`` is not installed.
    """
    return run_checks(FOLDER_CHECKS, read_folder(folder))


def read_facts_of(
    source: PathLike | DataList,
    data_root: PathLike | None = None,
    *,
    split: str | None = None,
    fold: int | None = None,
    fast: bool = True,
    glance: bool = False,
    only: Collection[PathLike] | None = None,
    follow_up: bool | None = None,
    workers: int = 1,
    progress: bool = False,
) -> ListFacts:
    """Read each file of a data list once, and keep what the checks need.

    Args:
        source: see :func:`examine`, as for the following ones.
        data_root: see there.
        split: see there.
        fold: see there.
        fast: see there.
        glance: see there.
        only: see there.
        follow_up: see there.
        workers: files that are read at a time; each takes the memory of one image.
        progress: show a progress bar on stderr.
    """
    if isinstance(source, DataList):
        facts = ListFacts(source, tuple(source.cases), ())
    else:
        facts = manifest.read_list(source, data_root, split=split, fold=fold)
    wanted = None if only is None else {os.fspath(path) for path in only}
    places = [
        (case, key, path)
        for case in facts.datalist.cases
        for key, path in files_of(case)
        if wanted is None or path in wanted
    ]
    wants: dict[tuple[str, bool], Wants] = {}
    for case, key, path in places:
        doubt = partial(is_doubtful, path, key, facts.modality_of(case)) if glance else _no_values
        wants.setdefault((path, key in LABEL_KEYS), doubt if fast else _all_values)
    read = _read_all(wants, workers, progress)
    uses = tuple(Use(case, key, read[path, key in LABEL_KEYS]) for case, key, path in places)
    return replace(facts, uses=uses, follow_up=follow_up)


def _no_values(_: PictureHeader | None) -> bool:
    return False


def _all_values(_: PictureHeader | None) -> bool:
    return True


def _read_all(
    wanted: Mapping[tuple[str, bool], Wants], workers: int, progress: bool
) -> dict[tuple[str, bool], FileFacts]:
    """Read each file once. Threads do: unpacking and counting release Python's lock."""

    def read(one: tuple[str, bool]) -> FileFacts:
        return read_facts(*one, wanted[one])

    with ThreadPoolExecutor(max(1, workers)) as pool:
        facts = pool.map(read, wanted) if workers > 1 else map(read, wanted)
        shown = tqdm(facts, "examining", len(wanted), unit="file", disable=not progress, leave=False)
        return dict(zip(wanted, shown, strict=True))


def all_checks() -> list[Check]:
    """Return every check, of data lists and of folders."""
    return [*LIST_CHECKS, *FOLDER_CHECKS]
