"""Pascal-5i and COCO-20i: which classes of natural images each fold keeps for testing (Shaban et al. 2017; Nguyen &
Todorovic 2019).

A fold is of classes, not of images: training sees the base classes in the training images, testing asks for the
novel ones in the validation images.
"""

from __future__ import annotations

from monai_ext.data.cards import load_card
from monai_ext.errors import UserError

FOLDS = 4

STRIDED = {"pascal_5i": False, "coco_20i": True}
"""Whether a fold takes every fourth class (COCO-20i) or five that follow each other (Pascal-5i)."""


def novel_classes(name: str, fold: int) -> list[str]:
    """Return the names of the classes that a fold tests.

    >>> novel_classes("pascal_5i", 0)
    ['aeroplane', 'bicycle', 'bird', 'boat', 'bottle']

    Args:
        name: ``pascal_5i`` or ``coco_20i``, whose card has the classes in their order.
        fold: 0 to 3.

    Raises:
        UserError: for another name or fold.
    """
    if name not in STRIDED:
        raise UserError(f"{name!r} has no folds of classes: choose one of {', '.join(STRIDED)}.")
    if not isinstance(fold, int) or isinstance(fold, bool) or not 0 <= fold < FOLDS:
        raise UserError(f"--class_fold is {fold}: give 0 to {FOLDS - 1}.")
    classes = list(load_card(name).labels)
    each = len(classes) // FOLDS
    return classes[fold::FOLDS] if STRIDED[name] else classes[fold * each : (fold + 1) * each]
