"""Which support serves the cases of a few-shot run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.pairs import pair_with_reference
from monai_ext.data.provenance import as_trained, check_overlap, read_record
from monai_ext.data.supports import choose_queries, pair_with_support, refuse_trained
from monai_ext.errors import UserError

UNKNOWN_PATIENT = "?"
"""Patient of the supports that cases bring themselves: a slice of anybody, whose size tells of no change."""


def load_supports(
    support_list: str | os.PathLike | None, datalist: str | os.PathLike, data_root: str | os.PathLike | None = None
) -> DataList:
    """Read the data list that has the support: the one given, or that of the run, with all of its folds and splits.

    Raises:
        UserError: there is no such list, or it is not usable.
    """
    if support_list is None:
        return load_datalist(datalist, data_root)
    if not Path(support_list).is_file():
        raise UserError(f"{support_list}: there is no such data list; check --support_list.")
    return load_datalist(support_list)


def serve_cases(
    cases: DataList,
    labels: Mapping[str, int],
    folder: str | os.PathLike,
    support: str | None,
    supports: DataList,
    queries: Sequence[str] | str | None = None,
    weights: str | os.PathLike | None = None,
    allow_modality: bool = False,
    allow_overlap: bool = False,
    allow_known: bool = False,
    slice_axis: str | None = None,
) -> list[dict[str, Any]]:
    """Give each case the annotated image that serves it.

    Args:
        cases: the data list. Without ``support`` each case names its own, ``reference_image`` and ``reference_label``.
        labels: name -> value of the structures asked for; of a ``support`` one.
        folder: of the run; the mask of the support is written into its folder ``supports``.
        support: an annotated case and slices of it, ``case05:14``; see
            :func:`monai_ext.data.supports.parse_support`.
        supports: data list that has the support.
        queries: names of the cases to segment; None: all that are of other patients.
        weights: their file, whose record says which patients they were trained on.
        allow_modality: let support and query be of different modalities.
        allow_overlap: let patients of the training pass.
        allow_known: let structures pass that the weights were trained on, which are not new to them.
        slice_axis: see :func:`monai_ext.data.supports.pair_with_support`.

    Returns:
        The pairs, as :func:`monai_ext.data.pairs.pair_with_reference` has them, and ``reference_patient``, whose
        support it is; :data:`UNKNOWN_PATIENT` where the cases bring their own.

    Raises:
        UserError: there is no support, it cannot serve, or the weights know the structure.
    """
    if weights is not None and not allow_known:
        refuse_known(weights, list(labels), "allow_known")
    names = [queries] if isinstance(queries, str) else queries
    if support is None:
        cases = choose_queries(cases, names)
        if not all(case.reference_image for case in cases.cases):
            raise UserError(
                f"{cases.dataset}: no support is named: give --support CASE:SLICE, an annotated case of the list and a "
                "slice of it, or give each case a reference_image and a reference_label in the data list."
            )
        pairs = pair_with_reference(cases)
        if not allow_overlap:
            _refuse_trained_pairs(pairs, cases, supports, weights)
        return [{**pair, "reference_patient": UNKNOWN_PATIENT} for pair in pairs]
    if len(labels) != 1:
        raise UserError(
            f"a support serves one structure, and {len(labels)} are asked for: name one, --labels \"['NAME']\"."
        )
    return pair_with_support(
        cases,
        support,
        next(iter(labels)),
        Path(folder) / "supports",
        supports,
        names,
        trained_patients(weights, supports),
        trained_patients(weights, cases),
        allow_modality,
        allow_overlap,
        slice_axis,
    )


def refuse_known(weights: str | os.PathLike, structures: Sequence[str], option: str) -> None:
    """Refuse structures that weights learned from masks, as far as their record says which: they are not new to them.

    Args:
        weights: their file; the record beside it names the ``classes`` that it was trained on.
        structures: names of what is to be segmented.
        option: of the command line that lets them pass.

    Raises:
        UserError: one is among those classes, whatever the case of its letters.
    """
    classes = as_trained(weights, "classes", default=[])
    known = {str(name).casefold() for name in classes}
    for name in structures:
        if name.casefold() in known:
            raise UserError(
                f"{name} is among the classes that {weights} learned from ({', '.join(classes)}), so it is not new to "
                f"it: name another, or set --{option} true."
            )


def _refuse_trained_pairs(
    pairs: Sequence[Mapping[str, Any]], cases: DataList, supports: DataList, weights: str | os.PathLike | None
) -> None:
    """Refuse cases of patients of the training, and references that are images of such patients in the list."""
    refuse_trained(cases.cases, trained_patients(weights, cases))
    images = {Path(image).resolve() for pair in pairs for image in pair["reference_image"]}
    owners = [case for case in supports.cases if Path(case.image).resolve() in images]
    refuse_trained(owners, trained_patients(weights, supports))


def trained_patients(weights: str | os.PathLike | None, datalist: DataList) -> set[str]:
    """Return the patients of a data list that weights were trained on; none where no record says so.

    A case without a patient is a patient of its own. See :func:`monai_ext.data.provenance.check_overlap` for data sets
    that share patients.
    """
    record = None if weights is None else read_record(weights)
    patients = {case.patient or case.case for case in datalist.cases}
    return set(check_overlap(record, datalist.dataset, patients, allow_overlap=True))
