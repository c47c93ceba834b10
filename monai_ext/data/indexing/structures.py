"""Which structures of RTSTRUCT and SEG files become the label map."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from monai_ext.data.cards import Card
from monai_ext.data.indexing.index import Index, Options
from monai_ext.errors import UserError

MOST_NAMES = 20  # of ROIs in a message

_NAMED = re.compile(r"\s*(\w[\w .+-]*?)\s*=(.+)", re.DOTALL)


def parse_roi(text: str) -> tuple[str | None, str]:
    """Read ``NAME=REGEX`` or a bare ``REGEX``, whose name is None.

    What stands before the first "=" is a name if it is made of letters, digits, blanks and ``_ . + -`` only, so
    that ``GTV(?=-1)`` is a bare expression.

    Raises:
        UserError: it is no regular expression.
    """
    match = _NAMED.fullmatch(text)
    name, pattern = match.groups() if match else (None, text)
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"--roi: {pattern!r} is no regular expression ({error}); correct it") from error
    return name, pattern


def structure_to_find(card: Card, options: Options, index: Index) -> tuple[int, str]:
    """Return the label value of a data set's one structure and the regular expression that finds its ROI or segment.

    Args:
        card: names the structure and its expression.
        options: ``roi`` replaces the expression, and as NAME=REGEX the structure's name as well.
        index: its ``labels`` and ``notes`` say what ``roi`` finds.

    Raises:
        UserError: ``roi`` is no regular expression, or there are several.
    """
    ((name, pattern),) = (card.roi_names or dict.fromkeys(card.labels, "")).items()
    value = card.labels[name]
    if options.roi is None:
        return value, pattern
    if len(options.roi) > 1:
        raise UserError(f"--roi: {card.name} is indexed for one structure; give one (index dicom takes several)")
    own_name, pattern = parse_roi(options.roi[0])
    if own_name is None:
        index.notes.append(f"what --roi finds is listed as {name!r}, whatever its own name")
    else:
        index.datalist["labels"] = {own_name: value}
    return value, pattern


def expressions_of(options: Options) -> list[str]:
    """Return the regular expressions by which ``--roi``, else ``--labels``, finds ROIs and segments.

    Raises:
        UserError: ``roi`` is no regular expression.
    """
    if options.roi is not None:
        return [parse_roi(text)[1] for text in options.roi]
    return [f"^{re.escape(name)}$" for name in options.labels or {}]


def patterns_of(options: Options, names: Iterable[str], descriptions: Iterable[str] = ()) -> dict[str, tuple[int, str]]:
    """Return value and regular expression of each structure of people's own DICOM.

    Args:
        options: ``roi`` and ``labels``.
        names: of the ROIs and segments that there are.
        descriptions: of segments, in which ``roi`` looks too.

    Returns:
        For each structure its value in the label map and the expression that finds its ROIs. Without ``roi`` these
        are the ROIs called as ``labels`` names them, or the only ROI there is.

    Raises:
        UserError: ``roi`` and ``labels`` do not fit together, a structure has no ROI, or there are several ROIs and
            nothing says which.
    """
    there = {name.casefold(): name for name in names}  # "GTV" and "gtv" are one
    every = sorted({*there.values(), *descriptions})
    if options.roi is not None:
        found = _named(options.roi, options.labels)
        for name, (_, pattern) in found.items():
            if every and not any(re.search(pattern, text, re.IGNORECASE) for text in every):
                raise UserError(
                    f"--roi: no ROI or segment is called {pattern!r} ({name}); there are: {_listed(every)}; correct it"
                )
        return found
    labels = options.labels or {}
    if labels and (not there or all(name.casefold() in there for name in labels)):
        return {name: (value, f"^{re.escape(name)}$") for name, value in labels.items()}
    if not there:
        raise UserError(
            "there is no RTSTRUCT or SEG with structures; name what is to be segmented: --labels NAME=VALUE"
        )
    if len(there) > 1 or len(labels) > 1:
        raise UserError(
            f"say which ROI or segment is which structure with --roi NAME=REGEX ...; there are: {_listed(every)}"
        )
    ((only,), (name, value)) = there.values(), next(iter(labels.items()), (next(iter(there.values())), 1))
    return {name: (value, f"^{re.escape(only)}$")}


def _named(texts: Sequence[str], labels: dict[str, int] | None) -> dict[str, tuple[int, str]]:
    found: dict[str, tuple[int, str]] = {}
    for text in texts:
        name, pattern = parse_roi(text)
        if name is None and len(texts) == 1 and labels is not None and len(labels) == 1:
            name = next(iter(labels))
        if name is None:
            raise UserError(f"--roi: {text!r} names no structure; write NAME=REGEX, such as tumour={text}")
        if name in found:
            raise UserError(f"--roi: {name!r} is given twice; write tumour='GTV|Tumou?r' for several ROI names")
        found[name] = (len(found) + 1, pattern)
    if labels is None:
        return found
    if labels.keys() != found.keys():
        raise UserError(
            f"--roi names {', '.join(found)} and --labels {', '.join(labels)}; name the same structures in both"
        )
    return {name: (labels[name], pattern) for name, (_, pattern) in found.items()}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(repr, names[:MOST_NAMES])) + more
