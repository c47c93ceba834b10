"""Checks of the values: what only voxels can tell. With --fast, none of them finds anything.

A run looks into the files that :mod:`monai_ext.data.doctor.glance` doubts, so it says some of this, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from monai_ext.data.checks import check_values
from monai_ext.data.doctor.facts import FollowUp, ListFacts, Use, Values
from monai_ext.data.doctor.findings import Check, Problem, many, some
from monai_ext.data.doctor.glance import AIR, looks_like_hu
from monai_ext.data.file_error import FileError

FEW = 10
"""Pixels or voxels below which a structure is called tiny."""


def not_a_number(facts: ListFacts) -> Iterator[Problem]:
    """An image holds NaN, which spreads to whatever is computed from it."""
    for use, values in _read(facts.images()):
        if values.n_nan:
            sentence = f"{use.name} holds {values.n_nan} NaN among {values.size} values"
            yield use.problem(sentence, "replace them, by the value of air for instance")


def infinite(facts: ListFacts) -> Iterator[Problem]:
    """An image holds infinite values."""
    for use, values in _read(facts.images()):
        if values.n_infinite:
            sentence = f"{use.name} holds {values.n_infinite} infinite among {values.size} values"
            yield use.problem(sentence, "replace them, by the highest finite value for instance")


def constant_image(facts: ListFacts) -> Iterator[Problem]:
    """All values of an image are the same."""
    for use, values in _read(facts.images()):
        if values.low == values.high:
            yield use.problem(f"every value of {use.name} is {values.low:g}", "export it again")


def ct_not_hu(facts: ListFacts) -> Iterator[Problem]:
    """A CT has no negative value or has been normalised: it is not in Hounsfield units, as the window for CT needs."""
    for use, values in _read(facts.images()):
        windowed = use.file.volume is not None or (_is_deep(use) and values.factor is None)
        if facts.modality_of(use.case) == "ct" and windowed and not looks_like_hu(values.low, values.high):
            between = f"{values.low:g} to {values.high:g}"
            what = f"no value below 0 ({between})" if values.low >= 0 else f"values from {between} only"
            fix = "apply RescaleSlope and RescaleIntercept (often: subtract 1024), or give its range with --intensity"
            yield use.problem(f"{use.name} is CT but has {what}, which are no Hounsfield units", fix)


def hu_without_ct(facts: ListFacts) -> Iterator[Problem]:
    """A volume that is not called CT has values like Hounsfield units; the window for CT would not be used."""
    for use, values in _read(facts.images()):
        if (
            facts.modality_of(use.case) != "ct"
            and use.file.volume is not None
            and AIR[0] <= values.low <= AIR[1]
            and values.high > 0
        ):
            modality = use.case.modality or facts.datalist.modality or "not stated"
            sentence = f"{use.name} has values from {values.low:g} to {values.high:g}, but its modality is {modality}"
            yield use.problem(
                sentence, 'if these are Hounsfield units, say so: "modality": "CT" in the list, or --modality CT'
            )


def scale_assumed(facts: ListFacts) -> Iterator[Problem]:
    """A picture of more than 8 bits does not say which value is white; it is taken from its type and its values.

    Decimals are on the scale [0, 1] or [0, 255], whole numbers up to 255 are 8-bit values, as are multiples of 257 or
    256; other pictures are scaled by percentiles, each by its own, and CT by its window. --intensity says otherwise.
    """
    for use, values in _read(facts.images()):
        if not _is_deep(use) or (values.factor is None and facts.modality_of(use.case) == "ct"):
            continue
        taken = "scaled by percentiles of its own" if values.factor is None else f"{_white(values)} is taken for white"
        sentence = f"{use.name} has {_depth(use)} from {values.low:g} to {values.high:g}: {taken}"
        yield use.problem(sentence, "if that is wrong, give the range with --intensity, or save it with 8 bits")


def scales_differ(facts: ListFacts) -> Iterator[Problem]:
    """Of a picture and the reference that serves it, one says which value is white and the other does not.

    The same structure then has other grey values in both.
    """
    for follow_up in facts.follow_ups():
        for target in follow_up.targets:
            for reference, _ in follow_up.references:
                known = [_scale_is_known(use) for use in (target, reference)]
                if None not in known and known[0] != known[1]:
                    own = [_depth(use) for use in (target, reference)]
                    sentence = f"{target.name} has {own[0]} and its reference {reference.name} {own[1]}"
                    sentence += ", and only one of them says which value is white"
                    yield target.problem(sentence, "save both in one way, best with 8 bits")


def label_not_whole(facts: ListFacts) -> Iterator[Problem]:
    """A label map holds other values than whole numbers: it was interpolated, or holds probabilities."""
    for use in facts.labels():
        if use.file.error is not None and use.file.error.code == "label_not_whole":
            yield use.problem(f"{use.name}: {use.file.error.what}", use.file.error.fix)


def unknown_label_value(facts: ListFacts) -> Iterator[Problem]:
    """A label map holds a value that 'labels' and 'ignore' of the data list do not name."""
    labels, ignore = facts.datalist.labels, facts.datalist.ignore
    known = {0, *labels.values()} | ({ignore} if ignore is not None else set())
    for use, values in _read(facts.labels() if labels else ()):
        counts = values.counts or {}
        try:
            check_values(use.file.path, counts, known)
        except FileError as error:
            unknown = [value for value in counts if value not in known]
            one_name = next(iter(labels)) if len(labels) == len(unknown) == 1 else ""
            fix = f'write "labels": {{"{one_name}": {unknown[0]}}}, or correct the file' if one_name else error.fix
            yield use.problem(error.what.replace("the label", use.name, 1), fix)


def structure_never_seen(facts: ListFacts) -> Iterator[Problem]:
    """No label map holds a structure that the data list names: its value may be mistyped."""
    read = [values.counts or {} for _, values in _read(facts.labels())]
    if not read or facts.mistakes or any(use.file.values is None for use in facts.labels()):
        return  # it may stand in a file that could not be read
    for name, value in facts.datalist.labels.items():
        if not any(value in counts for counts in read):
            sentence = f"{name} (value {value}) is in none of {many(len(read), 'label map')}"
            yield Problem(sentence, "correct its value, or leave it out of 'labels'")


def only_background(facts: ListFacts) -> Iterator[Problem]:
    """A label map has no structure; that is right only for images that show none."""
    serving = {id(label.file) for follow_up in facts.follow_ups() for _, label in follow_up.references}
    for use, values in _read(facts.labels()):
        if use.key == "label" and id(use.file) not in serving and not _present(values, facts):
            yield use.problem(f"{use.name} holds no structure", "check that the image shows none")


def empty_reference(facts: ListFacts) -> Iterator[Problem]:
    """The label maps of the reference hold no structure: there is nothing to learn from it."""
    for follow_up, present in _references(facts):
        if not present:
            label = follow_up.references[0][1]
            sentence = f"{label.name} holds no structure but is the reference of {_targets(follow_up)}"
            yield label.problem(sentence, "annotate it, or choose another reference")


def structure_not_in_reference(facts: ListFacts) -> Iterator[Problem]:
    """The reference lacks some of the structures; a run stops unless --labels leaves them out."""
    for follow_up, present in _references(facts):
        missing = [name for name, value in facts.datalist.labels.items() if value not in present]
        if present and missing:
            label = follow_up.references[0][1]
            sentence = f"{label.name} has no {some(missing)} but is the reference of {_targets(follow_up)}"
            yield label.problem(sentence, "annotate it there, choose another reference, or leave it out of --labels")


def tiny_structure(facts: ListFacts) -> Iterator[Problem]:
    """A structure has fewer than ten pixels in a label map: a slip of the pen, or too small to be measured."""
    for use, values in _read(facts.labels()):
        if use.key == "scribble":
            continue
        for name, value in facts.datalist.labels.items():
            count = (values.counts or {}).get(value, 0)
            if 0 < count < FEW:
                unit = "voxel" if use.file.volume is not None else "pixel"
                yield use.problem(f"{name} has {many(count, unit)} in {use.name}", "check the annotation there")


def empty_scribble(facts: ListFacts) -> Iterator[Problem]:
    """A scribble marks no structure."""
    for use, values in _read(facts.labels()):
        if use.key == "scribble" and not _present(values, facts):
            yield use.problem(f"{use.name} marks no structure", "draw on it, or leave 'scribble' out of the case")


def nothing_unlabelled(facts: ListFacts) -> Iterator[Problem]:
    """No scribble leaves a pixel unlabelled: all that nobody drew on would be learned as background.

    The value of 'ignore' is missing or another one. This stops a training on scribbles.
    """
    scribbles = [use for use in facts.labels() if use.key == "scribble"]
    if scribbles and all(use.file.values is not None and not _leaves_some(use, facts) for use in scribbles):
        what = f"none of {many(len(scribbles), 'scribble')} leaves a pixel unlabelled, because {_why_dense(facts)}"
        undrawn = _undrawn(scribbles, facts)
        fix = "say in 'ignore' which value means unlabelled; 0 is background, so give unlabelled pixels another value"
        yield Problem(what, f'write "ignore": {undrawn} if that is its value' if undrawn else fix)


def dense_scribble(facts: ListFacts) -> Iterator[Problem]:
    """A scribble leaves no pixel unlabelled, others do: 0 counts as drawn in it, and is learned as background."""
    scribbles = [use for use, _ in _read(facts.labels()) if use.key == "scribble"]
    if any(_leaves_some(use, facts) for use in scribbles):
        for use in scribbles:
            if not _leaves_some(use, facts):
                sentence = f"{use.name} leaves no pixel unlabelled, because {_why_dense(facts)}"
                yield use.problem(sentence, "give what nobody drew on the value of 'ignore'")


def same_image(facts: ListFacts) -> Iterator[Problem]:
    """Different files hold the same image, value for value."""
    for uses in _alike(facts.images()):
        sentence = f"{len(uses)} files hold the same image ({some(_places(uses))})"
        yield uses[0].problem(sentence, "keep one, or correct the copy")


def same_label(facts: ListFacts) -> Iterator[Problem]:
    """Different files hold the same label map of different images, and it is not empty."""
    drawn = [use for use in facts.labels() if use.file.values is not None and _present(use.file.values, facts)]
    images = {id(label.case): image.file.values for image, label in facts.pairs()}
    for uses in _alike(drawn):
        if len({values.digest for use in uses if (values := images.get(id(use.case))) is not None}) > 1:
            sentence = f"{len(uses)} files hold the same label map of different images ({some(_places(uses))})"
            yield uses[0].problem(sentence, "name each image's own label map")


def _read(uses: Iterator[Use] | tuple[()]) -> Iterator[tuple[Use, Values]]:
    for use in uses:
        if use.file.values is not None:
            yield use, use.file.values


def _is_deep(use: Use) -> bool:
    return use.file.picture is not None and use.file.picture.is_deep


def _scale_is_known(use: Use) -> bool | None:
    """Tell whether a picture says which value is white; None of a volume, or where that was not read."""
    if use.file.picture is None or (_is_deep(use) and use.file.values is None):
        return None
    return not _is_deep(use) or (use.file.values is not None and use.file.values.factor is not None)


def _depth(use: Use) -> str:
    if not _is_deep(use) or use.file.picture is None:
        return "grey values of 8 bits"
    return "decimals" if use.file.picture.mode.startswith("F") else "grey values of more than 8 bits"


def _white(values: Values) -> str:
    return f"{255 / (values.factor or 1):g}"


def _leaves_some(use: Use, facts: ListFacts) -> bool:
    values = use.file.values
    return values is not None and facts.datalist.ignore is not None and facts.datalist.ignore in (values.counts or {})


def _why_dense(facts: ListFacts) -> str:
    ignore = facts.datalist.ignore
    return "the data list has no 'ignore'" if ignore is None else f"no pixel has the value {ignore} of 'ignore'"


def _undrawn(scribbles: list[Use], facts: ListFacts) -> int | None:
    """Return the value that no label names and that most pixels of all scribbles have, if there is one."""
    counts: Counter[int] = Counter()
    for use in scribbles:
        counts.update(use.file.values.counts or {} if use.file.values is not None else {})
    value, number = counts.most_common(1)[0] if counts else (0, 0)
    named = {0, *facts.datalist.labels.values()}
    return value if value not in named and 2 * number > counts.total() else None


def _present(values: Values, facts: ListFacts) -> set[int]:
    """Values of structures that a label map holds."""
    background = {0, facts.datalist.ignore} - set(facts.datalist.labels.values())
    return set(values.counts or {}) - background


def _references(facts: ListFacts) -> Iterator[tuple[FollowUp, set[int]]]:
    """Yield what is followed up, with the values in the label maps of its references."""
    for follow_up in facts.follow_ups():
        values = [label.file.values for _, label in follow_up.references]
        read = [one for one in values if one is not None]
        if read and len(read) == len(values):
            yield follow_up, set().union(*(_present(one, facts) for one in read))


def _targets(follow_up: FollowUp) -> str:
    return f"case {some(use.case.case for use in follow_up.targets)}"


def _alike(uses: Iterator[Use] | list[Use]) -> list[list[Use]]:
    groups: dict[str, list[Use]] = {}
    for use in uses:
        if use.file.values is not None and use.file.values.low != use.file.values.high:
            groups.setdefault(use.file.values.digest, []).append(use)
    return [group for group in groups.values() if len(group) > 1]


def _places(uses: list[Use]) -> list[str]:
    return [f"{Path(use.file.path).name} of case {use.case.case}" for use in uses]


CHECKS: list[Check[ListFacts]] = [
    Check("error", not_a_number, 9),
    Check("error", infinite, 10),
    Check("error", constant_image, 11),
    Check("warning", ct_not_hu, 12),
    Check("warning", hu_without_ct, 12),
    Check("warning", scale_assumed, 20),
    Check("warning", scales_differ, 20),
    Check("error", label_not_whole, 13),
    Check("error", unknown_label_value, 13),
    Check("warning", structure_never_seen, 13),
    Check("warning", only_background, 13),
    Check("error", empty_reference, 14),
    Check("warning", structure_not_in_reference, 14),
    Check("warning", tiny_structure, 15),
    Check("warning", empty_scribble, 13),
    Check("error", nothing_unlabelled, 13),
    Check("warning", dense_scribble, 13),
    Check("warning", same_image, 24),
    Check("warning", same_label, 24),
]
