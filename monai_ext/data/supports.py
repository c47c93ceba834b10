"""Few-shot tasks as pairs of a reference and a target: the support, an annotated case or slice, serves each query.

The pairs are those of :func:`monai_ext.data.pairs.pair_with_reference`, so that every method with a reference runs on
few-shot tasks as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_ext.data.checks import check_same_grid
from monai_ext.data.contents import content_key
from monai_ext.data.images import read_geometry, read_label, write_mask
from monai_ext.data.manifest import Case, DataList
from monai_ext.data.pairs import Pair, make_pair
from monai_ext.data.slice_axis import stored_slice_axis
from monai_ext.errors import UserError
from monai_ext.files import PathLike, sha256_of
from monai_ext.made import note_file


@dataclass(frozen=True)
class Support:
    """What serves the queries.

    Args:
        case: name of an annotated case.
        slices: numbers of its slices whose mask is given, from 0 along the slice axis in the order of the file, as
            viewers count them, whichever way the network turns the volume; empty: all slices, of which the rule that
            matches slices takes its choice.
    """

    case: str
    slices: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The support as it stands in tables: ``chaos05_T2SPIR:14``."""
        return self.case if not self.slices else f"{self.case}:{','.join(map(str, self.slices))}"


def parse_support(text: str) -> Support:
    """Read a support: ``chaos05_T2SPIR``, ``chaos05_T2SPIR:14`` or ``chaos05_T2SPIR:9,14,19``.

    Raises:
        UserError: it is none of these.
    """
    case, colon, numbers = str(text).rpartition(":")
    if not colon:
        return Support(str(text))
    try:
        slices = tuple(int(number) for number in numbers.split(","))
    except ValueError:
        slices = (-1,)
    if not case or min(slices) < 0:
        raise UserError(
            f"support {text!r} is none: name a case, or a case and slices, such as case05:14 or case05:9,14."
        )
    return Support(case, slices)


def pair_with_support(
    datalist: DataList,
    support: str | Support,
    organ: str,
    folder: PathLike,
    supports: DataList | None = None,
    queries: Sequence[str] | None = None,
    trained: Collection[str] = (),
    trained_queries: Collection[str] | None = None,
    allow_modality: bool = False,
    allow_trained: bool = False,
    slice_axis: str | None = None,
    trained_option: str = "allow_overlap",
) -> list[Pair]:
    """Serve every case of a data list with one support.

    One run has one support; several supports are several runs, see
    :mod:`monai_ext.evaluation.support_spread`. Cases of the support's patient are no queries.

    >>> pairs = pair_with_support(datalist, "chaos05_T2SPIR:14", "spleen", "out/supports")  # doctest: +SKIP

    Args:
        datalist: of the queries.
        support: a case and slices of it, see :func:`parse_support`.
        organ: the structure; the mask that is handed on holds nothing else.
        folder: where the mask of the support is written to.
        supports: list that has the support; None: ``datalist``.
        queries: names of the queries; None: all cases.
        trained: patients of the training, among those of the list that has the support.
        trained_queries: likewise among those of ``datalist``; None: ``trained``.
        allow_modality: let support and query be of different modalities.
        allow_trained: let patients of the training pass.
        slice_axis: axis that counts the slices, "R", "A" or "S"; None: the one with the largest spacing.
        trained_option: option of the command line that lets patients of the training pass, for messages.

    Returns:
        One dictionary a query, as :func:`~monai_ext.data.pairs.pair_with_reference` gives, and ``reference_patient``,
        whose support it is. The query's own label is never in it.

    Raises:
        UserError: there is no such case, slice or organ, the support does not show the organ, no query is left, or a
            support or query is of another modality or a patient of the training.
    """
    chosen = support if isinstance(support, Support) else parse_support(support)
    source = datalist if supports is None else supports
    case = _find(source, chosen)
    targets = _queries(datalist, case, queries)
    if organ not in source.labels:
        raise UserError(f"class {organ!r} is unknown: {source.dataset} has {', '.join(source.labels)}.")
    if not allow_trained:
        refuse_trained([case], trained, trained_option)
        refuse_trained(targets, trained if trained_queries is None else trained_queries, trained_option)
    if not allow_modality:
        own = case.modality or source.modality or ""
        for target in targets:
            other = target.modality or datalist.modality or ""
            if other.strip().casefold() != own.strip().casefold():
                raise UserError(
                    f"case {target.case!r} is {other or '?'}, but its support {case.case!r} is {own or '?'}: choose a "
                    "support of its modality, or set --allow_modality true."
                )
    value = datalist.labels.get(organ, source.labels[organ])
    mask = write_support_mask(chosen, case, organ, source.labels[organ], value, folder, slice_axis)
    references = {
        "reference": [chosen.name],
        "reference_image": [case.image],
        "reference_label": [str(mask)],
        "reference_modality": [case.modality or source.modality or ""],
        "reference_choice": "pooled",
        "reference_patient": case.patient or case.case,
    }
    return [make_pair(target, datalist, dict(references)) for target in targets]


def write_support_mask(
    support: Support,
    case: Case,
    organ: str,
    value: int,
    written: int,
    folder: PathLike,
    slice_axis: str | None = None,
) -> Path:
    """Write the mask of a support, which holds one organ and, where slices are named, these alone.

    Args:
        support: case and slices.
        case: of the support.
        organ: its name.
        value: of the organ in the case's label.
        written: value that it gets.
        folder: where to; the file's name says what it was made of.
        slice_axis: "R", "A" or "S" where the network's slices are cut orthogonal to it; None: as the inferers choose.

    Raises:
        UserError: the label does not lie on its image, a slice is none of the image's, or does not show the organ.
    """
    label = str(case.label)
    geometry = read_geometry(case.image)
    check_same_grid(case.image, geometry, label, read_geometry(label))  # the mask gets the image's header
    stored = read_label(label)
    mask = stored == value
    if not mask.any():
        there = ", ".join(str(int(one)) for one in np.unique(stored)[:10]) or "nothing"
        raise UserError(
            f"support {support.name}: {label} shows no {organ} (value {value}; it holds {there}): choose another "
            "support, or correct the value in the data list."
        )
    if support.slices:
        mask &= _named_slices(support, case, organ, mask, slice_axis)
    place = None if geometry.affine is None else geometry.affine.tolist()
    key = content_key([sha256_of(label), list(support.slices), value, written, slice_axis, place])[:10]
    path = Path(folder) / f"{case.case}_{key}{'.png' if mask.ndim == 2 else '.nii.gz'}"
    if not path.is_file():
        note_file(path)
        write_mask(path, mask * written, like=case.image)
    return path.absolute()


def _named_slices(support: Support, case: Case, organ: str, mask: np.ndarray, slice_axis: str | None) -> np.ndarray:
    """Return where the named slices are, to be broadcast over the mask."""
    geometry = read_geometry(case.image)
    axis = stored_slice_axis(geometry.shape, geometry.affine, slice_axis)
    if axis is None:
        raise UserError(
            f"support {support.name}: {Path(case.image).name} is a picture and has no slices: name the case."
        )
    shown = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))).tolist()
    for number in support.slices:
        if number not in shown:
            raise UserError(
                f"support {support.name}: slice {number} of {case.label} shows no {organ}; slices {shown[0]} to "
                f"{shown[-1]} do."
            )
    kept = np.isin(np.arange(mask.shape[axis]), support.slices)
    return kept.reshape([-1 if k == axis else 1 for k in range(3)])


def _find(source: DataList, support: Support) -> Case:
    case = next((one for one in source.cases if one.case == support.case), None)
    if case is None:
        some = ", ".join(one.case for one in source.cases[:5])
        raise UserError(f"support {support.name}: {source.dataset} has no such case; it has {some}, ...: name one.")
    if case.label is None:
        raise UserError(f"support {support.name}: the case has no 'label'; add it to the data list.")
    return case


def choose_queries(datalist: DataList, names: Sequence[str] | None) -> DataList:
    """Return the data list with the named cases alone; None: all.

    Raises:
        UserError: there is no such case.
    """
    known = {case.case for case in datalist.cases}
    for name in names or ():
        if name not in known:
            raise UserError(f"query {name!r} is in no case of {datalist.dataset}: correct the names of the queries.")
    cases = [case for case in datalist.cases if names is None or case.case in names]
    return datalist.model_copy(update={"cases": cases})


def _queries(datalist: DataList, support: Case, names: Sequence[str] | None) -> list[Case]:
    targets = choose_queries(datalist, names).cases
    left = [c for c in targets if c.case != support.case and (c.patient is None or c.patient != support.patient)]
    if not left:
        raise UserError(f"support {support.case}: {datalist.dataset} has no case of another patient to be segmented.")
    return left


def refuse_trained(cases: Sequence[Case], trained: Collection[str], option: str = "allow_overlap") -> None:
    """Refuse cases whose patients are among those of the training.

    Args:
        cases: that are to be segmented, or that serve.
        trained: patients of the training.
        option: of the command line that lets them pass, for the message.

    Raises:
        UserError: names the case and the patient.
    """
    for case in cases:
        if (case.patient or case.case) in trained:
            raise UserError(
                f"case {case.case!r} is of patient {case.patient or case.case!r}, who is in the training: leave the "
                f"patient out, or set --{option} true."
            )
