"""What a person reads: the counts of a data list, and a card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from monai_ext.data.cards import Card
from monai_ext.data.indexing.index import Counts, Index

SHOWN = 10  # skipped items and reasons on the terminal; the list holds all of them


def report(found: Index, counts: Counts, output: Path, movable: bool) -> str:
    """Lay out what was found, what was skipped and why.

    Args:
        found: the list's content, the notes and what was skipped.
        counts: of the cases.
        output: the list.
        movable: whether the list names its images relative to its folder.
    """
    lines = [f"{found.datalist['dataset']}: {_many(counts.cases, 'case')}, {_many(counts.patients, 'patient')}"]
    lines.append(
        f"  with a label map: {counts.labelled}" + _if(counts.scribbled, f", with scribbles: {counts.scribbled}")
    )
    for key, groups in counts.groups.items():
        lines.append(f"  by {key}: " + ", ".join(f"{name} {groups[name]}" for name in sorted(groups)))
    if counts.present is not None:
        present = ", ".join(f"{name} {counts.present[name]}" for name in found.datalist["labels"])
        lines.append(f"  label maps that hold: {present}")
    lines += [f"note: {note}" for note in found.notes]
    lines += _skipped_lines(found.skipped)
    if not movable:
        lines.append("note: paths are absolute; write the list above the images for one that can be moved with them")
    return "\n".join([*lines, f"written to {output}"])


def _skipped_lines(skipped: Sequence[tuple[str, str]]) -> list[str]:
    if not skipped:
        return ["skipped: nothing"]
    lines = [f"skipped: {len(skipped)}"]
    reasons = Counter(why for _, why in skipped)
    for why, number in reasons.most_common(SHOWN):
        what = next(what for what, reason in skipped if reason == why)
        lines.append(f"  {what}" + _if(number - 1, f" and {number - 1} more") + f": {why}")
    if len(reasons) > SHOWN:
        lines.append(f"  and {len(reasons) - SHOWN} further reasons: see 'indexing' in the list")
    return lines


def describe(card: Card) -> str:
    """Lay out a card for people."""
    source, lines = card.source, [f"{card.title} ({card.modality}, {card.dimension}-D)"]
    registration = {True: "yes", False: "no", None: "not confirmed"}[source.registration]
    lines.append(f"source: {source.landing_page or 'not confirmed'}" + _if(source.doi, f" (doi {source.doi})"))
    lines += [f"how to get it: {source.how}", f"registration: {registration}", f"licence: {card.licence}"]
    lines += [f"cite: {citation.text}" + _if(citation.doi, f" doi {citation.doi}") for citation in card.citations]
    lines.append("labels: " + ", ".join(f"{name} = {value}" for name, value in card.labels.items()))
    lines.append("size: " + ", ".join(f"{value} {name}" for name, value in card.size.items() if value is not None))
    lines.append("layout below ROOT:")
    lines += [f"  {role}: {' or '.join(patterns)}" for role, patterns in card.layout.items()]
    lines += [f"{group.key}: {group.rule}" for group in card.groups]
    lines += [f"trap: {trap}" for trap in card.traps]
    lines += [f"not verified: {fact}" for fact in card.unverified]
    return "\n".join(lines)


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _if(condition: object, text: str) -> str:
    return text if condition else ""
