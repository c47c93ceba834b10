"""Data lists: JSON that names the cases of a data set, as anyone can write by hand.

Everything that can be checked without opening an image is checked here, and every mistake is one sentence
that names the list, the case and the key. What the pixels say is checked by :mod:`monai_ext.data.checks`.
"""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictInt, ValidationError

from monai_ext.data.text import read_text
from monai_ext.errors import UserError
from monai_ext.files import PathLike

MAX_BYTES = 50 * 2**20
MAX_DEPTH = 20
MAX_CASE_NAME_BYTES = 200  # file systems take 255, suffixes come on top
FILE_KEYS = ("image", "label", "scribble", "reference_image", "reference_label")

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_YEAR_LAST = re.compile(r"([0-9]{2})([0-9]{2})((?:19|20)[0-9]{2})")

Visit: TypeAlias = int | float | datetime.date


def parse_visit(value: object) -> Visit:
    """Read a visit: a number (``0``, ``1.5``, ``"3"``) or an ISO date (``"2023-04-15"``).

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, (str, int)) and has_year_last(str(value).strip()):
        raise ValueError(
            f'{value!r} reads like a date whose year is last, out of order as a number; write "2023-04-15"'
        )
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            return float(text) if "." in text else int(text)
        if _DATE.fullmatch(text):
            try:
                return datetime.date.fromisoformat(text)
            except ValueError:
                pass
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) < 1e18:  # neither NaN nor infinite
            return value
    elif isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    raise ValueError(f'{value!r} is no visit; write a number (0, 1, 2.5) or a date ("2023-04-15")')


def has_year_last(digits: str) -> bool:
    """Whether eight digits are a date with the year last (``15012024``, ``01152024``), and none with the year first."""
    match = _YEAR_LAST.fullmatch(digits)
    if match is None:
        return False
    first, second, year = map(int, match.groups())
    orders = ((year, second, first), (year, first, second))
    return any(map(_is_date, orders)) and not _is_date((int(digits[:4]), int(digits[4:6]), int(digits[6:])))


def _is_date(parts: tuple[int, int, int]) -> bool:
    try:
        return 1900 <= datetime.date(*parts).year < 2100
    except ValueError:
        return False


def _parse_case_name(name: object) -> object:
    """Let through what can be the name of a file on its own."""
    if isinstance(name, str):
        if not name.strip() or name in (".", ".."):
            raise ValueError(f"{name!r} is no name; write a short text without slashes")
        if any(c in "/\\" or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
            raise ValueError(f"{name!r} must do as a file name; leave out slashes and control characters")
        if name.startswith("."):
            raise ValueError(f"{name!r} would make hidden files; begin it with something else than a dot")
        if len(name.encode()) > MAX_CASE_NAME_BYTES:
            raise ValueError(f"is longer than {MAX_CASE_NAME_BYTES} bytes; choose a shorter name")
    return name


def _parse_labels(labels: object) -> object:
    """Let through names with different whole numbers above 0."""
    if isinstance(labels, dict):
        if not labels:
            raise ValueError('is empty; name at least one structure, such as {"tumour": 1}')
        if taken := sorted({"macro", "micro"} & set(labels)):
            raise ValueError(f"{taken[0]!r} is what means over labels are called; name the structure otherwise")
        for name, value in labels.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
                raise ValueError(f"{name!r} has the value {value!r}; label values are whole numbers above 0")
        value, count = Counter(labels.values()).most_common(1)[0]
        if count > 1:
            names = " and ".join(repr(name) for name, v in labels.items() if v == value)
            raise ValueError(f"{names} have the same value {value}; give each structure its own")
    return labels


def _parse_files(files: object) -> object:
    """Take one file for a list of one."""
    return [files] if isinstance(files, str) else files


class Case(BaseModel):
    """One image of a data set; further keys are kept and handed on.

    Args:
        case: name, unique in the list and usable as a file name.
        image: file of the image.
        patient: whose image it is.
        visit: orders the images of a patient, a number or a date.
        label: file of the dense label map.
        scribble: file of the scribbles.
        reference_image: files of references that serve this case instead of an earlier visit.
        reference_label: their label maps, as many.
        split: such as "train" or "test".
        fold: number of the cross-validation fold.
        modality: overrides the data set's.
    """

    model_config = ConfigDict(extra="allow")

    case: Annotated[str, BeforeValidator(_parse_case_name)]
    image: str
    patient: str | None = None
    visit: Annotated[Visit | None, BeforeValidator(lambda v: v if v is None else parse_visit(v))] = None
    label: str | None = None
    scribble: str | None = None
    reference_image: Annotated[list[str] | None, BeforeValidator(_parse_files)] = None
    reference_label: Annotated[list[str] | None, BeforeValidator(_parse_files)] = None
    split: str | None = None
    fold: StrictInt | None = None
    modality: str | None = None

    @property
    def extra(self) -> dict[str, Any]:
        """The further keys."""
        return dict(self.model_extra or {})


class DataList(BaseModel):
    """The cases of a data set and what they have in common; further keys are kept.

    Args:
        dataset: name of the data set.
        modality: such as "MR", "CT" or "endoscopy", for cases that do not say otherwise.
        labels: value in the label maps of each structure; 0 is background.
        ignore: value in the label maps that is neither a structure nor background.
        cases: the images.
    """

    model_config = ConfigDict(extra="allow")

    dataset: str
    modality: str | None = None
    labels: Annotated[dict[str, int], BeforeValidator(_parse_labels)]
    ignore: StrictInt | None = None
    cases: list[Case]


def load_datalist(
    path: PathLike,
    data_root: PathLike | None = None,
    *,
    split: str | None = None,
    fold: int | None = None,
    without_fold: int | None = None,
) -> DataList:
    """Read and check a data list; no image is opened.

    The whole list is checked for its form, but only the files of the selected cases need to exist.

    Args:
        path: the JSON file.
        data_root: folder that relative paths refer to and may not leave (default: the list's folder).
        split: select the cases of this split.
        fold: select the cases of this fold, those that it tests.
        without_fold: select the cases of all other folds, those that train for this one.

    Returns:
        The selected cases with absolute paths.

    Raises:
        UserError: the list is not usable; the sentence names the case and the key.

    Example:
        >>> datalist = load_datalist("ACDC.json", split="train")
        >>> datalist.labels
        {'RV': 1, 'MYO': 2, 'LV': 3}
    """
    path = Path(path).expanduser()
    datalist = _validate(read_json(path), path)
    check_ignore(datalist, path)
    _check_names(datalist.cases, path)
    check_patients(datalist.cases, path)
    check_one_group(datalist.cases, "split", path)
    check_one_group(datalist.cases, "fold", path)
    check_visits(datalist.cases, path)
    check_references(datalist.cases, path)
    datalist.cases = select(datalist.cases, "split", split, path)
    datalist.cases = select(datalist.cases, "fold", fold, path)
    datalist.cases = leave_fold_out(datalist.cases, without_fold, path)
    root = resolve_root(path.parent if data_root is None else Path(data_root))
    for case in datalist.cases:
        _resolve_files(case, root, path)
    return datalist


# Reading


def read_json(path: Path) -> object:
    """Read a data list as plain JSON; ``UserError`` where it is absent, too large, too deep or not JSON."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: a data list has at most {MAX_BYTES >> 20} MB; is this the right file?")
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the data list is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such data list; check --datalist") from error
    except OSError as error:
        raise UserError(f"{path}: the data list cannot be read: {error.strerror}") from error
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise UserError(f"{path}: the data list is nested too deep; a case is a plain object") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: the data list is not JSON ({error.msg}, {where}); correct it there") from error
    except ValueError as error:
        raise UserError(f"{path}: the data list {error}; correct it") from error
    if _is_deeper_than(content, MAX_DEPTH):
        raise UserError(f"{path}: the data list is nested too deep; a case is a plain object")
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs)
    if len(names) < len(pairs):
        raise ValueError(f"has the key {names.most_common(1)[0][0]!r} twice in one object")
    return dict(pairs)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"holds {name}, which is not JSON")


def _is_deeper_than(content: object, depth: int) -> bool:
    level = [content]
    for _ in range(depth + 1):
        nested = [item for item in level if isinstance(item, (dict, list))]
        level = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]
    return bool(level)


def _validate(content: object, path: Path) -> DataList:
    try:
        return DataList.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = place_of(content, first["loc"])
        raise UserError(f"{path}: {where}{describe_mistake(first)}") from error


def place_of(content: Any, location: tuple[int | str, ...]) -> str:
    """Say which case and key of the list ``location`` stands for, ending in ": " or ", "."""
    if location[:1] != ("cases",) or len(location) == 1:
        return f"key {location[0]!r} " if location else "the data list "
    number = int(location[1])
    entry = content["cases"][number]
    name = entry.get("case") if isinstance(entry, dict) else None
    case = f"case {name!r}" if isinstance(name, str) else f"cases[{number}]"
    return f"{case}, key {location[2]!r} " if len(location) > 2 else f"{case} "


_EXPECTED = {
    "string_type": "must be text in quotes",
    "int_type": "must be a whole number",
    "dict_type": "must be an object {...}",
    "list_type": "must be a list [...]",
    "model_type": 'must be an object {"key": value, ...}',
}


def describe_mistake(error: Any) -> str:
    """Say in words what pydantic found wrong with one value."""
    if error["type"] == "missing":
        return "is missing; add it"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    given = json.dumps(error["input"], default=str)
    given = given if len(given) <= 40 else given[:37] + "..."
    return f"{_EXPECTED.get(error['type'], error['msg'].lower())}, not {given}"


# Checks


def check_ignore(datalist: DataList, path: Path) -> None:
    """Check that the value to be ignored is neither background nor a structure."""
    if datalist.ignore is None:
        return
    if datalist.ignore < 1:
        raise UserError(f"{path}: key 'ignore' is {datalist.ignore}; it must be above 0, which is background")
    for name, value in datalist.labels.items():
        if value == datalist.ignore:
            raise UserError(f"{path}: key 'ignore' is {value}, which is the value of {name!r}; use another value")


def _check_names(cases: list[Case], path: Path) -> None:
    if not cases:
        raise UserError(f"{path}: the data list has no cases; add at least one to 'cases'")
    name, count = Counter(case.case for case in cases).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: {count} cases have the name {name!r}; give each its own")


def _by_patient(cases: Iterable[Case]) -> dict[str, list[Case]]:
    patients: dict[str, list[Case]] = {}
    for case in cases:
        if case.patient is not None:
            patients.setdefault(case.patient, []).append(case)
    return patients


def check_patients(cases: list[Case], path: Path) -> None:
    """Check that no patient is spelled in two ways: half of the visits would be another's, or in another split."""
    seen: dict[str, tuple[str, str]] = {}
    for patient, theirs in _by_patient(cases).items():
        plain = " ".join(unicodedata.normalize("NFC", patient).casefold().split())
        other, case = seen.setdefault(plain, (patient, theirs[0].case))
        if other != patient:
            raise UserError(
                f"{path}: patients {other!r} (case {case!r}) and {patient!r} (case {theirs[0].case!r}) differ in "
                "capitals, spaces or accents' coding alone; spell one patient in one way, or rename one of two"
            )


def check_one_group(cases: list[Case], key: str, path: Path) -> None:
    """Check that a patient's cases stay together, so that no test patient is trained on."""
    for patient, theirs in _by_patient(cases).items():
        groups = {getattr(case, key): case.case for case in theirs if getattr(case, key) is not None}
        if len(groups) > 1:
            (one, case), (other, other_case) = list(groups.items())[:2]
            raise UserError(
                f"{path}: patient {patient!r} is in {key} {one!r} (case {case!r}) and in {other!r} "
                f"(case {other_case!r}); keep a patient's cases together"
            )


def check_visits(cases: list[Case], path: Path) -> None:
    """Check that a patient's visits can be ordered: all numbers or all dates."""
    for patient, theirs in _by_patient(cases).items():
        dates = {isinstance(case.visit, datetime.date): case.case for case in theirs if case.visit is not None}
        if len(dates) > 1:
            raise UserError(
                f"{path}: patient {patient!r} has a date as visit of case {dates[True]!r} and a number "
                f"as visit of case {dates[False]!r}; write one or the other"
            )


def check_references(cases: list[Case], path: Path) -> None:
    """Check that each reference image has its label."""
    for case in cases:
        images, labels = case.reference_image or [], case.reference_label or []
        if len(images) != len(labels):
            raise UserError(
                f"{path}: case {case.case!r} has {len(images)} files in 'reference_image' and "
                f"{len(labels)} in 'reference_label'; each reference needs one of both"
            )


def select(cases: list[Case], key: str, value: str | int | None, path: Path) -> list[Case]:
    """Return the cases whose ``key`` is ``value``, all for None; ``UserError`` where there is none."""
    if value is None:
        return cases
    selected = [case for case in cases if getattr(case, key) == value]
    if not selected:
        present = sorted({getattr(case, key) for case in cases} - {None})
        there = ", ".join(map(repr, present)) if present else "none"
        raise UserError(f"{path}: no case is in {key} {value!r}; the {key}s there are: {there}")
    return selected


def leave_fold_out(cases: list[Case], fold: int | None, path: Path) -> list[Case]:
    """Return the cases of all folds but ``fold``, all cases for None.

    Cases without a fold take no part in a cross-validation: they are left out too.

    Raises:
        UserError: no case is in ``fold``, or all are.
    """
    if fold is None:
        return cases
    select(cases, "fold", fold, path)
    others = [case for case in cases if case.fold not in (None, fold)]
    if not others:
        raise UserError(f"{path}: all folds but {fold} are empty, so nothing is left to train on")
    return others


# Files


def resolve_root(root: Path) -> Path:
    """Return the full path of the folder of the images; ``UserError`` where there is no such folder."""
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; set --data_root to the folder of the images")
    return root.resolve()


def _resolve_files(case: Case, root: Path, path: Path) -> None:
    """Replace the files of a case by absolute paths."""
    for key in FILE_KEYS:
        files = getattr(case, key)

        def resolve(name: str, key: str = key) -> str:
            return resolve_file(name, root, f"{path}: case {case.case!r}, key {key!r}")

        if isinstance(files, str):
            setattr(case, key, resolve(files))
        elif files:
            setattr(case, key, [resolve(name) for name in files])


def resolve_file(name: str, root: Path, where: str) -> str:
    """Return the full path of a file; ``UserError``, beginning with ``where``, if it is none or outside ``root``."""
    try:
        file = root / name
        inside = Path(name).is_absolute() or file.resolve().is_relative_to(root)
        there, is_file = file.exists(), file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a circle of links
        raise UserError(f"{where}: {name!r} cannot be a file ({error}); correct it") from error
    if not inside:
        raise UserError(f"{where}: {name!r} leads out of the data root {root}; give its full path")
    if not there:
        raise UserError(f"{where}: there is no file {file}; correct it or set --data_root (now {root})")
    if not is_file:
        raise UserError(f"{where}: {file} is a folder; name one NIfTI file or picture")
    return str(file)
