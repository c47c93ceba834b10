"""Names of files and folders that are named by a structure, and of the mask files where structures overlap."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from monai_ext.errors import UserError


def structure_name(label: str) -> str:
    """Return a structure's name as it stands in names of files: blanks and slashes are written as underscores."""
    return "".join("_" if character in "/\\" or character.isspace() else character for character in label)


def structure_file(case: str, label: str) -> str:
    """Return the name, without suffix, of a case's mask of one structure.

    Example:
        >>> structure_file("visit_2", "left kidney")
        'visit_2_left_kidney'
    """
    return f"{case}_{structure_name(label)}"


def structure_files(cases: Iterable[str], labels: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Map each name of :func:`structure_file` to all (case, structure) that it stands for, which should be one."""
    labels = list(labels)
    files: dict[str, list[tuple[str, str]]] = {}
    for case in cases:
        for label in labels:
            files.setdefault(structure_file(case, label), []).append((case, label))
    return files


def refuse_shared_files(cases: Iterable[Mapping[str, Any]], labels: Collection[str]) -> None:
    """Refuse masks that would overwrite each other, for runs that write one file a case and structure.

    Args:
        cases: what is segmented, with ``case``, the name.
        labels: names of the structures; the file of a single one is named by the case alone.

    Raises:
        UserError: names the masks.
    """
    names = dict.fromkeys(str(case["case"]) for case in cases)
    for name, owners in structure_files(names, labels).items() if len(labels) > 1 else ():
        if len(owners) > 1:
            raise shared_file(name, owners)


def shared_file(name: str, owners: Iterable[tuple[str, str]]) -> UserError:
    """Return the sentence for a name that stands for several masks."""
    listed = " and ".join(f"{label!r} of case {case!r}" for case, label in owners)
    return UserError(f"the mask file {name} would be of {listed}: rename one in the data list.")
