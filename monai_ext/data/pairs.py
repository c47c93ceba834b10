"""Pairs of an annotated reference and the images it serves: earlier and later visits of one patient."""

from __future__ import annotations

import datetime
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from monai_ext.data.images import FRAME_SUFFIXES, VOLUME_SUFFIXES
from monai_ext.data.manifest import Case, DataList, Visit, parse_visit
from monai_ext.errors import UserError

logger = logging.getLogger(__name__)

VisitLike: TypeAlias = int | float | str | datetime.date
Pair: TypeAlias = dict[str, Any]

_HIDDEN = ("label", "scribble")
EARLIER = ("all", "nearest")
"""What ``reference_visit`` may be besides visits: all earlier annotated images pooled, or the most alike of them."""


def pair_with_reference(
    datalist: DataList, reference_visit: VisitLike | Sequence[VisitLike] | None = None
) -> list[Pair]:
    """Give each image the annotated image or images of the same patient that serve it.

    The reference is the patient's earliest visit with a label, or the visit that ``reference_visit`` names;
    the targets are all images of later visits. Several references (several visits named, or several
    annotated images of one visit) serve together, and targets are then later than all of them. With ``all`` or
    ``nearest`` each image is served by the annotated images of all visits before its own, and never by one of
    its own visit or a later one. A case that brings its own ``reference_image`` and ``reference_label`` is
    served by these. Patients without a later visit are left out.

    Args:
        datalist: the cases.
        reference_visit: a visit (number or ISO date) or several, ``all`` or ``nearest``.

    Returns:
        One dictionary a target, in the order of the list: ``case``, ``patient``, ``visit``, ``dataset``,
        ``modality``, ``image``, ``reference`` (names), ``reference_image`` and ``reference_label`` (files),
        ``reference_modality`` (of each; of files that the case brings the case's own),
        ``reference_choice`` (``pooled``, or ``nearest``: the inferer takes one of them), and the case's further
        keys. What is not known is ``""``, dates are ISO text. The target's own label and scribble are never in it.

    Raises:
        UserError: a case has no patient or visit, a patient has no reference, or nothing is left to segment.

    Example:
        >>> pairs = pair_with_reference(load_datalist("LIST.json"))
        >>> pairs[0]["case"], pairs[0]["reference"]
        ('patient001_visit2', ['patient001_visit1'])
    """
    earlier = _earlier(reference_visit)
    wanted = [] if earlier else _parse_reference_visits(reference_visit)
    choice = "nearest" if earlier == "nearest" else "pooled"
    served = {case.case: _own_references(case, datalist) for case in datalist.cases if case.reference_image}
    for patient, cases in _patients(datalist.cases).items():
        if earlier:
            served.update(_served_by_all_earlier(patient, cases, datalist))
            continue
        references = _references(patient, cases, wanted)
        last = max(map(_time, references), default=math.inf)
        targets = [case for case in cases if _time(case) > last]
        if not targets:
            logger.info("patient %s has no visit after its reference and is left out", patient)
        for case in targets:
            served[case.case] = _named_references(references, datalist)
    if not served:
        raise UserError(
            f"{datalist.dataset}: no patient has an image of a visit later than its reference; "
            "add a later visit or set --reference_visit to an earlier one"
        )
    return [
        make_pair(case, datalist, {**served[case.case], "reference_choice": choice})
        for case in datalist.cases
        if case.case in served
    ]


def single_images(datalist: DataList) -> list[Pair]:
    """Return each image alone, for methods that need no reference.

    Returns:
        One dictionary a case, in the order of the list, as :func:`pair_with_reference` has it without the references.
        ``patient`` is the case's name where the list names none. Label and scribble are never in it.

    Example:
        >>> single_images(load_datalist("LIST.json"))[0]["image"]
        '/data/images/patient001_visit1.nii.gz'
    """
    return [make_pair(case, datalist, {"patient": case.patient or case.case}) for case in datalist.cases]


def with_previous(pairs: Sequence[Pair], follow: bool | str = True) -> list[Pair]:
    """Tell each target which target of the same patient comes before it, for methods that go on from its result.

    Args:
        pairs: of :func:`pair_with_reference`.
        follow: False leaves the pairs as they are, with ``previous`` empty. How a method follows may be said here;
            MONAI's command line gives ``false`` as text.

    Returns:
        Copies with ``previous``, the name of the target of the latest earlier visit (of several in one visit the last
        of the list), ``previous_image``, its file, and ``previous_modality``. All are ``""`` where there is none, or
        where that image is annotated and serves as a reference: then the latest reference is the previous image.
    """
    linked = [{**pair, "previous": "", "previous_image": "", "previous_modality": ""} for pair in pairs]
    patients: dict[str, list[Pair]] = {}
    for pair in linked if str(follow).lower() not in ("false", "none", "") else ():
        if pair["patient"] and pair["visit"] != "":
            patients.setdefault(pair["patient"], []).append(pair)
    for theirs in patients.values():
        for pair in theirs:
            earlier = [other for other in theirs if _visit_time(other) < _visit_time(pair)]
            before = max(reversed(earlier), key=_visit_time, default=None)
            if before is not None and before["case"] not in pair["reference"]:
                pair.update(
                    previous=before["case"],
                    previous_image=before["image"],
                    previous_modality=before["modality"],
                )
    return linked


def with_labels(pairs: Sequence[Pair], datalist: DataList) -> list[Pair]:
    """Bring back each target's own label, for metrics alone.

    Returns:
        Copies of the pairs with the file ``label``.

    Raises:
        UserError: a target has no label.
    """
    labels = {case.case: case.label for case in datalist.cases}
    for pair in pairs:
        if labels.get(pair["case"]) is None:
            raise UserError(
                f"case {pair['case']!r} has no 'label' to evaluate against; "
                "add it to the data list, or run without evaluate.yaml"
            )
    return [{**pair, "label": labels[pair["case"]]} for pair in pairs]


def _earlier(value: VisitLike | Sequence[VisitLike] | None) -> str | None:
    """Return ``all`` or ``nearest`` where that is asked for."""
    one = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1 else value
    return one if isinstance(one, str) and one in EARLIER else None


def _served_by_all_earlier(patient: str, cases: Sequence[Case], datalist: DataList) -> dict[str, Pair]:
    """Map each case to the annotated cases of all visits before its own, in the order of time."""
    annotated = sorted((case for case in cases if case.label is not None), key=_time)
    if not annotated and len(cases) > 1:
        raise UserError(f"patient {patient!r} has no case with a 'label' to be the reference; add one")
    earlier = {case.case: [other for other in annotated if _time(other) < _time(case)] for case in cases}
    if not any(earlier.values()):
        logger.info("patient %s has no visit after its reference and is left out", patient)
    return {name: _named_references(references, datalist) for name, references in earlier.items() if references}


def _parse_reference_visits(value: VisitLike | Sequence[VisitLike] | None) -> list[Visit]:
    if value is None:
        return []
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        return list(dict.fromkeys(parse_visit(one) for one in several))
    except ValueError as error:
        raise UserError(f"reference_visit: {error}") from error


def _patients(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Sort the cases that have no reference of their own by patient."""
    patients: dict[str, list[Case]] = {}
    for case in cases:
        if case.reference_image:
            continue
        if case.patient is None:
            raise UserError(
                f"case {case.case!r} has neither 'patient', to find an earlier visit, nor 'reference_image' "
                "and 'reference_label'; add one or the other to the data list"
            )
        patients.setdefault(case.patient, []).append(case)
    for patient, theirs in patients.items():
        missing = [case.case for case in theirs if case.visit is None]
        if missing and len(theirs) > 1:
            raise UserError(
                f"patient {patient!r} has {len(theirs)} cases, but case {missing[0]!r} has no 'visit'; "
                "add a number or a date to each, to tell which comes first"
            )
    return patients


def _references(patient: str, cases: Sequence[Case], wanted: Sequence[Visit]) -> list[Case]:
    """Choose the annotated cases of the wanted visits, the latest last, or the earliest; none for a single case."""
    if wanted:
        return sorted((case for visit in wanted for case in _annotated(patient, cases, visit)), key=_time)
    if len(cases) == 1:
        return []
    annotated = [case for case in cases if case.label is not None]
    if not annotated:
        raise UserError(f"patient {patient!r} has no case with a 'label' to be the reference; add one")
    earliest = min(map(_time, annotated))
    return [case for case in annotated if _time(case) == earliest]


def _time(case: Case) -> float:
    """Order the visits of one patient, which are all numbers or all dates."""
    if isinstance(case.visit, datetime.date):
        return case.visit.toordinal()
    return -math.inf if case.visit is None else case.visit


def _visit_time(pair: Pair) -> float:
    """Order the visits of the pairs of one patient: numbers, or dates as ISO text."""
    visit = pair["visit"]
    return datetime.date.fromisoformat(visit).toordinal() if isinstance(visit, str) else visit


def _annotated(patient: str, cases: Sequence[Case], visit: Visit) -> list[Case]:
    at_visit = [case for case in cases if case.visit == visit]
    if not at_visit:
        there = ", ".join(str(case.visit) for case in cases if case.visit is not None) or "none"
        raise UserError(f"patient {patient!r} has no visit {visit} to be the reference; its visits are: {there}")
    annotated = [case for case in at_visit if case.label is not None]
    if not annotated:
        raise UserError(
            f"case {at_visit[0].case!r} is the reference of patient {patient!r} (visit {visit}), "
            "but has no 'label'; add it or choose another --reference_visit"
        )
    return annotated


def _named_references(cases: Sequence[Case], datalist: DataList) -> Pair:
    return {
        "reference": [case.case for case in cases],
        "reference_image": [case.image for case in cases],
        "reference_label": [case.label for case in cases],
        "reference_modality": [case.modality or datalist.modality or "" for case in cases],
    }


def _own_references(case: Case, datalist: DataList) -> Pair:
    images = case.reference_image or []
    return {
        "reference_modality": [case.modality or datalist.modality or ""] * len(images),
        "reference": [_stem(file) for file in images],
        "reference_image": list(images),
        "reference_label": list(case.reference_label or []),
    }


def _stem(file: str) -> str:
    name = Path(file).name
    suffixes = sorted(VOLUME_SUFFIXES + FRAME_SUFFIXES, key=len, reverse=True)
    suffix = next((s for s in suffixes if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def make_pair(case: Case, datalist: DataList, references: Pair) -> Pair:
    """Return what a run is told of a target: its case without label and scribble, and what serves it."""
    visit = case.visit.isoformat() if isinstance(case.visit, datetime.date) else case.visit
    further = {k: v for k, v in case.extra.items() if v is not None and k.lower() not in _HIDDEN}
    return {
        **further,
        "case": case.case,
        "patient": case.patient or "",
        "visit": "" if visit is None else visit,
        "dataset": datalist.dataset,
        "modality": case.modality or datalist.modality or "",
        "image": case.image,
        **references,
    }


def single_value(value: Any) -> Any:
    """Take an entry of a case out of what :func:`collate_case` makes of it: ``["MR"]`` -> ``"MR"``."""
    return value[0] if isinstance(value, (list, tuple)) and value else value


def collate_case(cases: Sequence[Pair]) -> dict[str, Any]:
    """Make a batch of one case that MONAI's ``decollate_batch`` takes apart again as it was.

    Tensors get a batch axis; text and numbers become a list of one; a list (of references) becomes a list of such
    lists, as MONAI's own collation has it. Other keys of a data list (nested dictionaries, nothing) are left out: no
    step of a run needs them and they cannot be taken apart.

    Raises:
        ValueError: for more than one case; they may differ in size.
    """
    import torch  # both take seconds, and commands that only pair cases need neither
    from monai.data import MetaTensor
    from monai.data.utils import collate_meta_tensor_fn

    if len(cases) != 1:
        raise ValueError("cases are taken one by one: set batch_size to 1")
    batch: dict[str, Any] = {}
    for key, value in cases[0].items():
        if isinstance(value, torch.Tensor):
            batch[key] = collate_meta_tensor_fn([value]) if isinstance(value, MetaTensor) else value[None]
        elif isinstance(value, str | int | float):
            batch[key] = [value]
        elif isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
            batch[key] = [[one] for one in value]
    return batch
