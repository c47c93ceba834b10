"""Checks of what belongs to a patient: whether there is an annotated image to follow the others from."""

from __future__ import annotations

from collections.abc import Iterator

from monai_ext.data.doctor.facts import ListFacts
from monai_ext.data.doctor.findings import Check, Problem, many, some
from monai_ext.data.manifest import Case
from monai_ext.data.pairs import pair_with_reference
from monai_ext.errors import UserError


def nothing_to_follow(facts: ListFacts) -> Iterator[Problem]:
    """Later visits are to be segmented from earlier ones, and none can be: no patient has an annotated earlier one.

    It is not looked for where no case names a patient, or one has a scribble, a split or a fold: such lists are for
    training, or test what was trained. --follow_up yes or no says which it is.
    """
    if facts.mistakes or not facts.datalist.cases or not facts.is_followed_up():
        return
    try:
        pair_with_reference(facts.datalist)
    except UserError as error:
        sentence, _, fix = str(error).rpartition("; ")
        yield Problem(sentence, f"{fix}, or add --follow_up no here if the list is for training or another method")


def no_patient(facts: ListFacts) -> Iterator[Problem]:
    """Cases name no patient: no earlier visit can serve them, and nobody can see whether splits share a patient."""
    names = [case.case for case in facts.datalist.cases if case.patient is None]
    if names:
        sentence = f"{len(names)} of {many(len(facts.datalist.cases), 'case')} name no patient ({some(names)})"
        yield Problem(
            sentence,
            "add 'patient' where you know it; a later visit needs it to find its reference, or references of its own",
        )


def single_visit(facts: ListFacts) -> Iterator[Problem]:
    """Patients with one image and no references of its own: methods that follow a patient leave them out."""
    patients = _patients(facts)
    alone = [name for name, cases in patients.items() if len(cases) == 1 and not cases[0].reference_image]
    if alone:
        sentence = f"{len(alone)} of {many(len(patients), 'patient')} have a single image ({some(alone)})"
        yield Problem(
            f"{sentence}, which a method that follows patients leaves out", "add their other visits if you have them"
        )


def visit_missing(facts: ListFacts) -> Iterator[Problem]:
    """A patient has several images, and one has no visit: which comes first is unknown."""
    for patient, cases in _patients(facts).items():
        followed = [case for case in cases if not case.reference_image]
        without = [case.case for case in followed if case.visit is None]
        if without and len(followed) > 1:
            sentence = f"patient {patient} has {many(len(followed), 'image')} but no 'visit' in {some(without)}"
            yield Problem(sentence, "add a number or a date to each, to tell which comes first", without[0])


def same_visit(facts: ListFacts) -> Iterator[Problem]:
    """Several annotated images of a patient have the same visit: they serve together as references."""
    for patient, cases in _patients(facts).items():
        visits: dict[object, list[str]] = {}
        for case in cases:
            if case.visit is not None and case.label and not case.reference_image:
                visits.setdefault(case.visit, []).append(case.case)
        for visit, names in visits.items():
            if len(names) > 1:
                sentence = f"patient {patient} has {len(names)} annotated images of visit {visit} ({some(names)})"
                fix = "give each its own visit if they are not to serve together as references"
                yield Problem(sentence, fix, names[0])


def no_annotated_visit(facts: ListFacts) -> Iterator[Problem]:
    """A patient has several images but no label map (and no scribble): no visit can serve the others."""
    for patient, cases in _patients(facts).items():
        followed = [case for case in cases if not case.reference_image]
        if len(followed) > 1 and not any(case.label or case.scribble for case in followed):
            sentence = f"patient {patient} has {many(len(followed), 'image')} and no label map"
            yield Problem(sentence, "annotate the first visit, or give 'reference_image' and 'reference_label'")


def label_in_last_visit_only(facts: ListFacts) -> Iterator[Problem]:
    """Only the last visit of a patient is annotated, so that no later one is left to be segmented."""
    served = {id(use.case) for follow_up in facts.follow_ups() for use in follow_up.targets}
    for patient, cases in _patients(facts).items():
        followed = [case for case in cases if case.visit is not None and not case.reference_image]
        annotated = [case.case for case in followed if case.label]
        if (
            len({case.visit for case in followed}) > 1
            and annotated
            and not any(id(case) in served for case in followed)
        ):
            sentence = f"patient {patient} has no image later than the annotated {some(annotated)}"
            yield Problem(sentence, "annotate an earlier visit if the others are to be segmented", annotated[0])


def own_reference(facts: ListFacts) -> Iterator[Problem]:
    """A case is its own reference: its label would be both given and asked for."""
    for case in facts.datalist.cases:
        if case.image in (case.reference_image or []):
            yield Problem("'reference_image' names the case's own image", "name another one", case.case, case.image)


def _patients(facts: ListFacts) -> dict[str, list[Case]]:
    """Return the cases of each patient; none if some could not be read, for what is missing may be in them."""
    return {} if facts.mistakes else facts.patients()


CHECKS: list[Check[ListFacts]] = [
    Check("error", nothing_to_follow),
    Check("note", no_patient),
    Check("note", single_visit),
    Check("warning", visit_missing),
    Check("note", same_visit),
    Check("warning", no_annotated_visit),
    Check("note", label_in_last_visit_only),
    Check("warning", own_reference),
]
