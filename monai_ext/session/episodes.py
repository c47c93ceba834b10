"""Which structures and patients learned prompts may be tested on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from monai_ext.data.provenance import as_trained, check_overlap, read_record
from monai_ext.errors import UserError
from monai_ext.session.supports import refuse_known


def choose_classes(
    prompt_file: str | os.PathLike,
    known: Sequence[str],
    classes: Sequence[str] | str | None = None,
    allow_trained: bool = False,
) -> list[str]:
    """Return the structures that episodes ask for.

    Args:
        prompt_file: learned prompts, whose record names the classes of the training.
        known: names in the data lists.
        classes: those asked for; None: all that the prompts did not learn from.
        allow_trained: let those of the training pass.

    Raises:
        UserError: an unknown structure, one of the training, or none is left.
    """
    if classes is None:
        learned = {str(name).casefold() for name in as_trained(prompt_file, "classes", default=[])}
        names = [name for name in known if allow_trained or name.casefold() not in learned]
        if not names:
            raise UserError(
                f"{prompt_file} learned from all structures of the data lists ({', '.join(known)}): set "
                "--allow_trained true, or give prompts of a training with --novel."
            )
        return names
    names = [classes] if isinstance(classes, str) else [str(name) for name in classes]
    for name in names:
        if name not in known:
            raise UserError(f"class {name!r} is in no data list: they have {', '.join(known)}.")
    if not allow_trained:
        refuse_known(prompt_file, names, "allow_trained")
    return names


def refuse_trained(prompt_file: str | os.PathLike, items: Sequence[Mapping[str, Any]], allow: bool = False) -> None:
    """Refuse cases of patients that learned prompts, or the SAM beside them, were trained on.

    Raises:
        UserError: names some of these patients.
    """
    for dataset in {str(item["dataset"]) for item in items}:
        patients = {str(item["patient"]) for item in items if item["dataset"] == dataset}
        trained = check_overlap(read_record(prompt_file), dataset, patients, allow_overlap=True)
        if trained and not allow:
            raise UserError(
                f"{', '.join(trained)} of {dataset} are patients that {prompt_file} learned from: name others with "
                "--fold or --patients, or set --allow_trained true."
            )
