"""Checks of the data list itself: what it says, and whether its files are there."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from monai_ext.data.doctor.facts import ListFacts, Mistake, files_of
from monai_ext.data.doctor.findings import Check, Problem, many, some
from monai_ext.data.manifest import (
    FILE_KEYS,
    Case,
    DataList,
    check_ignore,
    check_one_group,
    check_patients,
    check_references,
    check_visits,
    describe_mistake,
    place_of,
    read_json,
    resolve_file,
    resolve_root,
    select,
)
from monai_ext.errors import UserError
from monai_ext.files import PathLike

_LIST = Path("list")


def read_list(
    path: PathLike, data_root: PathLike | None = None, *, split: str | None = None, fold: int | None = None
) -> ListFacts:
    """Read as much of a data list as can be read; no image is opened.

    :func:`~monai_ext.data.manifest.load_datalist` stops at the first mistake; here, cases that are well formed go on
    to be examined, and what is wrong with the others is kept.

    Args:
        path: the JSON file.
        data_root: see ``load_datalist``.
        split: select the cases of this split.
        fold: select the cases of this fold.

    Raises:
        UserError: there is no such folder, split or fold.
    """
    path = Path(path).expanduser()
    root = resolve_root(path.parent if data_root is None else Path(data_root))
    try:
        content = read_json(path)
    except UserError as error:
        empty = DataList.model_construct(dataset="", labels={}, cases=[])
        return ListFacts(empty, (), (), (Mistake("list_unreadable", _problem(error, str(path))),))
    datalist, mistakes = _parse(content)
    all_cases = tuple(datalist.cases)
    if all_cases:
        datalist.cases = select(select(datalist.cases, "split", split, path), "fold", fold, path)
    datalist.cases, missing = _resolve(datalist.cases, root)
    return ListFacts(datalist, all_cases, (), (*mistakes, *missing))


def _parse(content: Any) -> tuple[DataList, list[Mistake]]:
    """Return what is well formed of a list, and what is not."""
    try:
        return DataList.model_validate(content), []
    except ValidationError as error:
        wrong = error.errors()
    mistakes = [_key_mistake(content, one) for one in wrong]
    if not isinstance(content, dict):
        return DataList.model_construct(dataset="", labels={}, cases=[]), mistakes
    keys = {one["loc"][0] for one in wrong if one["loc"]}
    odd = {(*one["loc"][1:], "")[:2] for one in wrong if one["loc"][:1] == ("cases",)}
    entries = content.get("cases") if isinstance(content.get("cases"), list) else []
    cases = [case for number, entry in enumerate(entries or []) if (case := _parse_case(number, entry, odd))]
    head = {key: value for key, value in content.items() if key not in keys and key != "cases"}
    return DataList.model_construct(**{"dataset": "", "labels": {}, **head, "cases": cases}), mistakes


def _parse_case(number: int, entry: Any, odd: set[tuple[Any, ...]]) -> Case | None:
    """Read a case without the keys that are wrong; None if nothing is left of it."""
    if not isinstance(entry, dict) or {(number, "case"), (number, "image")} & odd:
        return None
    return Case.model_validate({key: value for key, value in entry.items() if (number, key) not in odd})


def _key_mistake(content: Any, error: Any) -> Mistake:
    location = error["loc"]
    name = ""
    if location[:1] == ("cases",) and len(location) > 1:
        entry = content["cases"][int(location[1])]
        name = str(entry["case"]) if isinstance(entry, dict) and isinstance(entry.get("case"), str) else ""
    words = f"{place_of(content, location)}{describe_mistake(error)}"
    return Mistake("wrong_key", _split(words, name))


def _resolve(cases: list[Case], root: Path) -> tuple[list[Case], list[Mistake]]:
    """Replace files by absolute paths; those that are not there are left out of the case, and reported."""
    mistakes: list[Mistake] = []

    def resolve(name: str, case: Case, key: str) -> str | None:
        try:
            return resolve_file(name, root, "list")
        except UserError as error:
            code = "path_leaves_root" if _leaves(name, root) else "file_missing"
            problem = _problem(error, "list", case.case, str(root / name.replace("\0", "")))
            fix = problem.fix if code == "path_leaves_root" else _find_near(root / name) or problem.fix
            sentence = f"key {key!r}: {problem.sentence}"
            mistakes.append(Mistake(code, Problem(sentence, fix, problem.case, problem.file)))
            return None

    resolved = []
    for case in cases:
        files: dict[str, Any] = {}
        for key in FILE_KEYS:
            value = getattr(case, key)
            if isinstance(value, str):
                files[key] = resolve(value, case, key)
            elif value:
                files[key] = [path for name in value if (path := resolve(name, case, key)) is not None]
        resolved.append(case.model_copy(update=files))
    return resolved, mistakes


def _leaves(name: str, root: Path) -> bool:
    try:
        return not Path(name).is_absolute() and not (root / name).resolve().is_relative_to(root)
    except (OSError, ValueError, RuntimeError):
        return False


def _find_near(file: Path) -> str:
    """Suggest a file of another spelling that is there."""
    if "\\" in file.name:
        return "write / instead of \\ between folders"
    try:
        names = _names_below(file.parent)
    except (OSError, ValueError):
        return ""
    for guess in (file.name, f"{file.name}.gz", file.name.removesuffix(".gz")):
        if found := names.get(_same(guess)):
            return f"there is {found}; write its name as it is"
    return ""


@lru_cache(maxsize=4)
def _names_below(folder: Path) -> dict[str, str]:
    return {_same(path.name): path.name for path in folder.iterdir() if path.is_file()}


def _same(name: str) -> str:
    """Return what upper and lower case and different forms of an accented letter have in common."""
    return unicodedata.normalize("NFC", name).casefold()


def _problem(error: UserError, prefix: str, case: str = "", file: str = "") -> Problem:
    problem = _split(str(error).removeprefix(f"{prefix}: "), case)
    return Problem(problem.sentence, problem.fix, case, file)


def _split(words: str, case: str = "") -> Problem:
    """Take "what is wrong; what to do" apart."""
    words = words.removeprefix(f"case {case!r}, ").removeprefix(f"case {case!r} ") if case else words
    sentence, _, fix = words.rpartition("; ")
    return Problem(sentence or fix, fix if sentence else "correct it in the data list", case)


def _raised(check: Callable[..., None], *arguments: Any, case: str = "") -> Iterator[Problem]:
    """Yield what a check of :mod:`monai_ext.data.manifest` raises."""
    try:
        check(*arguments, _LIST)
    except UserError as error:
        yield _problem(error, str(_LIST), case)


# Checks


def list_unreadable(facts: ListFacts) -> Iterator[Problem]:
    """The data list is no JSON in UTF-8, has more than 50 MB, is nested too deep or has a key twice."""
    return _mistakes(facts, "list_unreadable")


def wrong_key(facts: ListFacts) -> Iterator[Problem]:
    """A key of the data list is missing, or its value is of the wrong kind; other cases are examined all the same."""
    return _mistakes(facts, "wrong_key")


def no_cases(facts: ListFacts) -> Iterator[Problem]:
    """The data list has no cases."""
    if not facts.all_cases and not facts.mistakes:
        yield Problem("the data list has no cases", "add at least one to 'cases'")


def file_missing(facts: ListFacts) -> Iterator[Problem]:
    """A file is not there, or is a folder; files that differ in upper and lower case or in ".gz" are suggested."""
    yield from _mistakes(facts, "file_missing")
    for use in facts.files():
        if use.file.error is not None and use.file.error.code == "file_missing":
            yield use.problem(f"{use.name} is not there", use.file.error.fix)


def path_leaves_root(facts: ListFacts) -> Iterator[Problem]:
    """A relative path leads out of the data root, through ".." or a link; such lists are refused."""
    return _mistakes(facts, "path_leaves_root")


def duplicate_case(facts: ListFacts) -> Iterator[Problem]:
    """Several cases have one name, so that their outputs would overwrite each other."""
    for name, count in Counter(case.case for case in facts.all_cases).items():
        if count > 1:
            yield Problem(f"{count} cases have this name", "give each its own", name)


def similar_case(facts: ListFacts) -> Iterator[Problem]:
    """Names differ only in upper and lower case or in how an accent is stored: one file on Windows and macOS."""
    names = sorted({case.case for case in facts.all_cases}, key=_same)
    for _, group in groupby(names, key=_same):
        alike = list(group)
        if len(alike) > 1:
            listed = " and ".join(map(repr, alike))
            yield Problem(f"{listed} are one name on Windows and macOS", "rename all but one", alike[0])


def odd_path(facts: ListFacts) -> Iterator[Problem]:
    """A path holds a line break or another control character, or a name begins or ends with a blank.

    Blanks inside and letters of any alphabet are fine.
    """
    for use in facts.files():
        parts = Path(use.file.path).parts
        if any(part != part.strip() or any(unicodedata.category(c) == "Cc" for c in part) for part in parts):
            yield use.problem(
                f"the path {use.file.path!r} has characters that other programs stumble over", "rename it"
            )


def wrong_ignore(facts: ListFacts) -> Iterator[Problem]:
    """The value to ignore is not above 0, or is that of a structure."""
    yield from _raised(check_ignore, facts.datalist)


def patient_spelled_twice(facts: ListFacts) -> Iterator[Problem]:
    """Two patients differ in capitals or spaces alone: one patient's visits are taken for those of two."""
    yield from _raised(check_patients, facts.all_cases)


def patient_in_two_splits(facts: ListFacts) -> Iterator[Problem]:
    """A patient has cases in two splits: what is tested on has been trained on."""
    for cases in _patients(facts.all_cases):
        yield from _raised(check_one_group, cases, "split")


def patient_in_two_folds(facts: ListFacts) -> Iterator[Problem]:
    """A patient has cases in two folds of the cross-validation."""
    for cases in _patients(facts.all_cases):
        yield from _raised(check_one_group, cases, "fold")


def split_missing(facts: ListFacts) -> Iterator[Problem]:
    """Some cases have a split and others have none, so that no run that asks for a split takes them."""
    yield from _without(facts.all_cases, "split")


def fold_missing(facts: ListFacts) -> Iterator[Problem]:
    """Within one split, some cases have a fold and others have none."""
    for split in dict.fromkeys(case.split for case in facts.all_cases):
        yield from _without([case for case in facts.all_cases if case.split == split], "fold")


def mixed_visits(facts: ListFacts) -> Iterator[Problem]:
    """A patient's visits are dates and numbers, which cannot be put in order."""
    for cases in _patients(facts.all_cases):
        yield from _raised(check_visits, cases)


def unequal_references(facts: ListFacts) -> Iterator[Problem]:
    """A case has a different number of reference images and of their label maps."""
    for case in facts.all_cases:
        yield from _raised(check_references, [case], case=case.case)


def label_is_image(facts: ListFacts) -> Iterator[Problem]:
    """A case names one file as image and as label map."""
    for case in facts.datalist.cases:
        images = {path for key, path in files_of(case) if key.endswith("image")}
        for key, path in files_of(case):
            if not key.endswith("image") and path in images:
                yield Problem(f"{key!r} names the file of the image, {Path(path).name}", "correct it", case.case, path)


def _without(cases: Sequence[Case], key: str) -> Iterator[Problem]:
    without = [case.case for case in cases if getattr(case, key) is None]
    if 0 < len(without) < len(cases):
        sentence = f"{len(without)} of {many(len(cases), 'case')} have no {key!r} ({some(without)}), others have one"
        yield Problem(sentence, f"give each case its {key}")


def _mistakes(facts: ListFacts, code: str) -> Iterator[Problem]:
    return (mistake.problem for mistake in facts.mistakes if mistake.code == code)


def _patients(cases: Sequence[Case]) -> list[list[Case]]:
    patients: dict[str, list[Case]] = {}
    for case in cases:
        if case.patient is not None:
            patients.setdefault(case.patient, []).append(case)
    return list(patients.values())


CHECKS: list[Check[ListFacts]] = [
    Check("error", list_unreadable, 23),
    Check("error", wrong_key),
    Check("error", no_cases),
    Check("error", file_missing),
    Check("error", path_leaves_root, 26),
    Check("error", duplicate_case, 24),
    Check("warning", similar_case, 24),
    Check("warning", odd_path, 25),
    Check("error", wrong_ignore, 13),
    Check("error", patient_spelled_twice),
    Check("error", patient_in_two_splits),
    Check("error", patient_in_two_folds),
    Check("warning", split_missing),
    Check("warning", fold_missing),
    Check("error", mixed_visits),
    Check("error", unequal_references),
    Check("error", label_is_image),
]
