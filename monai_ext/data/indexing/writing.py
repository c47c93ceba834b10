"""From a folder to a data list on disk: the steps that every data set goes through."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from monai_ext.data.cards import load_card
from monai_ext.data.indexing import INDEXERS, OWN_DATA
from monai_ext.data.indexing.index import Index, Options, check_cases
from monai_ext.data.indexing.report import report
from monai_ext.data.manifest import FILE_KEYS, load_datalist
from monai_ext.errors import UserError
from monai_ext.files import atomic_path

REASONS = 3  # different ones in a message
EVERYWHERE = frozenset({"modality", "image_pattern", "copy_geometry", "headers_only"})
ONLY_FOR = {
    "folder": frozenset({"labels", "ignore", "patient_pattern", "label_pattern", "threshold"}),
    "bids": frozenset({"labels", "ignore", "label_pattern", "sessions"}),
    "dicom": frozenset({"labels", "roi"}),
    "4d_lung": frozenset({"roi", "gates"}),
    "nsclc_radiomics": frozenset({"roi"}),
}


def index(dataset: str, root: str | Path, output: str | Path, options: Options | None = None) -> str:
    """Write the data list of a download.

    Args:
        dataset: name of a card, or "folder", "bids" or "dicom".
        root: folder of the download.
        output: data list to write (JSON).
        options: how to read it.

    Returns:
        The report: counts, notes, what was skipped and why.

    Raises:
        UserError: nothing was found, an option does not apply, or the list cannot be written.
    """
    options = options or Options()
    root, output = Path(root).expanduser().absolute(), Path(output).expanduser().absolute()
    _check_options(dataset, options)
    _check_paths(root, output)
    files = output.with_name(f"{output.stem}_files")
    if dataset in OWN_DATA:
        found = OWN_DATA[dataset](root, files, options)
    else:
        found = INDEXERS[dataset](root, files, load_card(dataset), options)
    if options.modality is not None:
        found.datalist["modality"] = options.modality
    if dataset != "dicom":  # which looks into the SeriesDescription
        _choose_images(found, root, options)
    counts = check_cases(found, files, options)
    if not found.datalist["cases"]:
        where = f"see {dataset} --card" if dataset in INDEXERS else "see --help"
        raise UserError(f"{root}: no case of {dataset} can be used{_first_reason(found)}; {where} for what is expected")
    movable = _write(found, output)
    return report(found, counts, output, movable)


def _check_options(dataset: str, options: Options) -> None:
    """Refuse a data set that is not known, and options that it would not look at."""
    if dataset not in INDEXERS and dataset not in OWN_DATA:
        known = ", ".join([*sorted(INDEXERS), *OWN_DATA])
        raise UserError(f"{dataset!r} is no data set that can be indexed; choose one of: {known}")
    for option in fields(options):
        taken = option.name in EVERYWHERE | ONLY_FOR.get(dataset, frozenset())
        if not taken and getattr(options, option.name) != option.default:
            whose = "the card says it" if dataset in INDEXERS else "it is for other data"
            raise UserError(f"--{option.name} does not apply to {dataset} ({whose}); leave it out")
    _check_labels(options.labels or {}, options.ignore)


def _check_labels(labels: Mapping[str, int], ignore: int | None) -> None:
    """Refuse values of which a list would be refused, before files of a former list are written over."""
    of_value: dict[int, str] = {}
    for name, value in labels.items():
        if (other := of_value.setdefault(value, name)) != name:
            raise UserError(f"--labels: {other!r} and {name!r} have the same value {value}; give each its own")
    if ignore in of_value:
        raise UserError(f"--ignore {ignore}: this is the value of {of_value[ignore]!r}; use another value")


def _check_paths(root: Path, output: Path) -> None:
    """Refuse what would only fail after minutes of conversion."""
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give the folder of the download")
    if output.suffix.lower() != ".json":
        raise UserError(f"{output}: a data list is a JSON file; give it a name that ends in .json")
    folder = next(folder for folder in output.parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{output}: nothing can be written to {folder}; choose another -o")


def _choose_images(found: Index, root: Path, options: Options) -> None:
    """Drop the cases whose image ``--image_pattern`` does not find."""
    if options.image_pattern is None:
        return
    chosen = []
    for entry in found.datalist["cases"]:
        image = Path(entry["image"])
        name = image.relative_to(root).as_posix() if image.is_relative_to(root) else image.name
        if options.image_pattern.search(name):
            chosen.append(entry)
        else:
            found.skipped.append((entry["case"], "left out by --image_pattern"))
    found.datalist["cases"] = chosen


def _write(found: Index, output: Path) -> bool:
    """Write the list, and read it back before it gets its name; tell whether all its paths are relative."""
    folder = output.parent
    cases = [_relative(entry, folder) for entry in found.datalist["cases"]]
    skipped = [{"what": _shorten(what, folder), "why": why} for what, why in found.skipped]
    content = {**found.datalist, "cases": cases, "indexing": {"notes": found.notes, "skipped": skipped}}
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            load_datalist(temporary)
        except UserError as error:
            raise UserError(str(error).replace(str(temporary), str(output))) from error
    return not any(os.path.isabs(entry["image"]) for entry in cases)


def _relative(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    def shorten(value: Any) -> Any:
        return [_shorten(one, folder) for one in value] if isinstance(value, list) else _shorten(value, folder)

    named = {key: shorten(value) if key in FILE_KEYS else value for key, value in entry.items()}
    if series := entry.get("dicom_series"):
        named["dicom_series"] = {**series, "folder": shorten(series["folder"])}
    return {key: value for key, value in named.items() if value is not None}


def _shorten(path: str | None, folder: Path) -> str | None:
    """Name a file relative to the list's folder if it lies below, also when links are followed."""
    if path is None or not os.path.isabs(path):
        return path
    below = Path(path).is_relative_to(folder) and Path(path).resolve().is_relative_to(folder.resolve())
    return Path(path).relative_to(folder).as_posix() if below else path


def _first_reason(found: Index) -> str:
    if not found.skipped:
        return ""
    first = {why: what for what, why in reversed(found.skipped)}  # one of each reason
    reasons = "; ".join(f"{what}: {why}" for why, what in list(reversed(first.items()))[:REASONS])
    return f" (skipped {len(found.skipped)}; {reasons})"
