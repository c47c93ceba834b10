"""Checks of the files as such: whether they can be read, and what kind of picture they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from monai_ext.data.doctor.facts import ListFacts, Use
from monai_ext.data.doctor.findings import Check, Problem, many, some


def unknown_kind(facts: ListFacts) -> Iterator[Problem]:
    """A file is of a kind that cannot be read: neither NIfTI nor a picture, by its suffix."""
    return _errors(facts, "unknown_kind")


def truncated(facts: ListFacts) -> Iterator[Problem]:
    """A file ends before its last voxel. Compressed files are unpacked to the end to find out (not with --fast)."""
    return _errors(facts, "truncated")


def bad_gzip(facts: ListFacts) -> Iterator[Problem]:
    """A .gz file is not gzip, or its checksum is wrong."""
    return _errors(facts, "bad_gzip")


def damaged(facts: ListFacts) -> Iterator[Problem]:
    """A file is not what its suffix says, or its header makes no sense."""
    return _errors(facts, "damaged")


def four_axes(facts: ListFacts) -> Iterator[Problem]:
    """A volume has a time axis or channels; a case is one 3-D volume."""
    return _errors(facts, "four_axes")


def value_type(facts: ListFacts) -> Iterator[Problem]:
    """A volume holds colours or complex numbers."""
    return _errors(facts, "value_type")


def too_large(facts: ListFacts) -> Iterator[Problem]:
    """The header claims more voxels than any image has; no memory is taken for it."""
    return _errors(facts, "too_large")


def several_pictures(facts: ListFacts) -> Iterator[Problem]:
    """A file holds several pictures (pages, an animation)."""
    return _errors(facts, "several_pictures")


def colour_label(facts: ListFacts) -> Iterator[Problem]:
    """A label map is a colour picture: which colour is which structure is unknown."""
    return _errors(facts, "colour_label")


def transparent(facts: ListFacts) -> Iterator[Problem]:
    """Some pixels of a picture are transparent: an image is shown over black, of a label map the values count."""
    for use in facts.files():
        if use.file.values is not None and use.file.values.n_transparent:
            what = "their values count all the same" if use.file.is_label else "they are shown over black"
            sentence = f"{use.name} has {many(use.file.values.n_transparent, 'transparent pixel')}: {what}"
            yield use.problem(sentence, "save it without an alpha channel, as you want it seen")


def sixteen_bit(facts: ListFacts) -> Iterator[Problem]:
    """An image is a picture of more than 8 bits: grey values are kept, colours are cut to 8 bits on reading."""
    for use in _pictures(facts):
        picture = use.file.picture
        if use.file.is_label or picture is None:
            continue
        if picture.is_deep:
            sentence = f"{use.name} has grey values of more than 8 bits, which are kept"
            yield use.problem(sentence, "check that it looks as it should in the overlays")
        elif "16" in picture.stored:
            sentence = f"{use.name} has colours of 16 bits, of which 8 are read"
            yield use.problem(sentence, "save it with 8 bits a channel, scaled as you want it seen")


def palette(facts: ListFacts) -> Iterator[Problem]:
    """A picture has a palette: an image is read in its colours, a label map in its indices."""
    for use in _pictures(facts):
        if use.file.picture is not None and use.file.picture.mode.startswith("P"):
            read = "indices, not by its colours" if use.file.is_label else "colours"
            yield use.problem(f"{use.name} has a palette and is read by its {read}", "check that this is meant")


def lossy_label(facts: ListFacts) -> Iterator[Problem]:
    """A label map is a JPEG, which changes values near edges."""
    for use in facts.labels():
        if use.file.picture is not None and use.file.picture.kind in ("JPEG", "MPO"):
            yield use.problem(f"{use.name} is a JPEG, whose values are not exact", "export it again as PNG")


def wrong_suffix(facts: ListFacts) -> Iterator[Problem]:
    """A picture is of another kind than its suffix says."""
    kinds = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
    for use in _pictures(facts):
        kind = "JPEG" if use.file.picture.kind == "MPO" else use.file.picture.kind  # type: ignore[union-attr]
        if kinds.get(Path(use.file.path).suffix.lower(), kind) != kind:
            yield use.problem(f"{use.name} is a {kind} file, whatever its name says", "rename it")


def exif_rotated(facts: ListFacts) -> Iterator[Problem]:
    """A picture is stored lying and is turned upright by its EXIF orientation before use."""
    turned = [use for use in _pictures(facts) if use.file.picture is not None and use.file.picture.orientation > 1]
    for use in turned:
        yield use.problem(f"{use.name} is turned as its EXIF orientation says", "check that its label map lies on it")


def exif_differs(facts: ListFacts) -> Iterator[Problem]:
    """An image and its label map have different EXIF orientations: one of them may lie wrong."""
    for image, label in facts.pairs():
        one, other = image.file.picture, label.file.picture
        if one is not None and other is not None and one.orientation != other.orientation:
            sentence = f"EXIF turns {image.name} (orientation {one.orientation}) but not {label.name} likewise"
            yield label.problem(f"{sentence} ({other.orientation})", "save both upright, without EXIF orientation")


def image_twice(facts: ListFacts) -> Iterator[Problem]:
    """Several cases name one image file."""
    cases: dict[str, list[str]] = {}
    for case in facts.datalist.cases:
        if case.image is not None:
            cases.setdefault(case.image, []).append(case.case)
    for path, names in cases.items():
        if len(names) > 1:
            sentence = f"{len(names)} cases have the image {Path(path).name} ({some(names)})"
            yield Problem(sentence, "name each case's own image, or keep one", names[0], path)


def _pictures(facts: ListFacts) -> Iterator[Use]:
    return (use for use in facts.files() if use.file.picture is not None)


def _errors(facts: ListFacts, code: str) -> Iterator[Problem]:
    for use in facts.files():
        if use.file.error is not None and use.file.error.code == code:
            yield use.problem(f"{use.name}: {use.file.error.what}", use.file.error.fix)


CHECKS: list[Check[ListFacts]] = [
    Check("error", unknown_kind),
    Check("error", truncated, 16),
    Check("error", bad_gzip, 17),
    Check("error", damaged),
    Check("error", four_axes, 18),
    Check("error", value_type, 18),
    Check("error", too_large, 22),
    Check("error", several_pictures),
    Check("error", colour_label, 13),
    Check("warning", transparent, 19),
    Check("note", sixteen_bit, 20),
    Check("note", palette, 20),
    Check("warning", lossy_label),
    Check("note", wrong_suffix),
    Check("note", exif_rotated, 21),
    Check("warning", exif_differs, 21),
    Check("warning", image_twice, 24),
]
