"""Which structure of an RTSTRUCT or SEG becomes the label map."""

from __future__ import annotations

import re

from monai_ext.data.cards import Card
from monai_ext.data.indexing.frame import Options
from monai_ext.errors import UserError


def structure_to_find(card: Card, options: Options) -> tuple[int, str]:
    """Return the label value of a data set's one structure and the regular expression that finds its ROI or segment.

    Args:
        card: names the structure and its expression.
        options: ``roi`` replaces the expression.

    Raises:
        UserError: ``roi`` is no regular expression.
    """
    ((name, pattern),) = (card.roi_names or dict.fromkeys(card.labels, "")).items()
    pattern = pattern if options.roi is None else options.roi
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"--roi: {pattern!r} is no regular expression ({error}); correct it") from error
    return card.labels[name], pattern
