"""Which series a ROI or segment was drawn on.

A file may hold structures of several series, so each structure is assigned on its own, by the slices
(SOPInstanceUIDs) that its contours or frames name. Where they name none, its frame of reference decides among the
series that the file names (else among all), and the planes in which it lies. UIDs that are not unique (visits that
share a SeriesInstanceUID, patients that share SOPInstanceUIDs) leave several series: patient, study and planes may
tell them apart. Where several series fit to the end, or none, that is an error and never a guess.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from monai_ext.data.dicom.drawing import Drawing
from monai_ext.data.dicom.geometry import find_problems
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.errors import UserError

NOT_HERE = "refers to an image series that is not here; add it"


class NotAssignedError(UserError):
    """A structure whose series is not clear; the sentence begins with its verb.

    Args:
        sentence: what is wrong, and what to do.
        candidates: the series that it may have been drawn on.
    """

    def __init__(self, sentence: str, candidates: Iterable[SeriesHeaders] = ()) -> None:
        super().__init__(sentence)
        self.candidates = tuple(candidates)


class SeriesFinder:
    """Finds the series of each structure.

    Args:
        images: the image series there are.
    """

    def __init__(self, images: Iterable[SeriesHeaders]) -> None:
        self.images = list(images)
        self._of_slice: defaultdict[str, set[int]] = defaultdict(set)
        for number, series in enumerate(self.images):
            for header in series.slices:
                if header.sop_instance_uid:
                    self._of_slice[header.sop_instance_uid].add(number)

    def find(self, drawing: Drawing) -> SeriesHeaders:
        """Return the series that a structure was drawn on.

        Raises:
            NotAssignedError: it is not here, or several fit, or the file contradicts itself.
        """
        named = drawing.named_slices
        fitting = self._by_slices(drawing, named) if named else self._by_frame(drawing)
        if drawing.problem:
            raise NotAssignedError(drawing.problem, fitting)
        fitting = _in_its_frame(drawing, _of_its_patient(drawing, fitting))
        for fits in _preferences(drawing):
            if len(fitting) > 1:
                fitting = list(filter(fits, fitting)) or fitting
        if len(fitting) > 1:
            raise NotAssignedError(
                f"fits {len(fitting)} series ({_listed(fitting)}), and the file does not say which; leave one of them "
                "out, or export it with references to the slices it was drawn on",
                fitting,
            )
        return fitting[0]

    def _by_slices(self, drawing: Drawing, named: Sequence[frozenset[str]]) -> list[SeriesHeaders]:
        """Return the series to which the slices belong that contours or frames name."""
        found = [set[int]().union(*(self._of_slice.get(uid, ()) for uid in uids)) for uids in named]
        known = [numbers for numbers in found if numbers]
        if not known:
            return self._by_listing(drawing, frozenset[str]().union(*named))
        common = set.intersection(*known)
        absent = frozenset[str]().union(*(uids for uids, numbers in zip(named, found, strict=True) if not numbers))
        others = _listing(drawing, absent) - {self.images[number].series_uid for number in common}
        if not common or others:
            several = [self.images[number] for number in sorted(set.union(*known))]
            more = " and of a series that is not here" if others else ""
            raise NotAssignedError(
                f"was drawn on slices of several series ({_listed(several)}){more}; split it into one for each series",
                several,
            )
        return [self.images[number] for number in sorted(common)]

    def _by_listing(self, drawing: Drawing, absent: frozenset[str]) -> list[SeriesHeaders]:
        """Return the series for which the file lists these slices, none of which is here, else all that it names.

        The slices of a series may have got other UIDs since. Coordinates are checked when the mask is drawn.
        """
        uids = _listing(drawing, absent) or set(drawing.file.references)
        fitting = [series for series in self.images if series.series_uid in uids]
        if not fitting or uids - {series.series_uid for series in fitting}:
            raise NotAssignedError(NOT_HERE)
        return fitting

    def _by_frame(self, drawing: Drawing) -> list[SeriesHeaders]:
        """Return the series that the file names, in the frame of reference of the structure; else all series in it."""
        named = [series for series in self.images if series.series_uid in drawing.file.references]
        if drawing.file.references and not named:
            raise NotAssignedError(NOT_HERE)
        frame = drawing.frame_of_reference_uid
        if not frame and not named:
            raise NotAssignedError(
                "names neither slices nor a series nor a frame of reference; export it again with references",
                [series for series in self.images if series.patient_id == drawing.file.patient_id],
            )
        fitting = [series for series in named if frame in ("", *_frames(series)) or not _frames(series)]
        fitting = fitting or [series for series in self.images if frame in _frames(series)]
        if not fitting:
            raise NotAssignedError(
                f"lies in the frame of reference {frame}, which no series here has; add the series it was drawn on",
                named,
            )
        return fitting


def _listing(drawing: Drawing, slices: frozenset[str]) -> set[str]:
    """SeriesInstanceUIDs for which the file lists one of the slices."""
    return {uid for uid, listed in drawing.file.references.items() if not listed.isdisjoint(slices)}


def _of_its_patient(drawing: Drawing, fitting: Sequence[SeriesHeaders]) -> list[SeriesHeaders]:
    patient = drawing.file.patient_id
    own = [series for series in fitting if not patient or series.patient_id in ("", patient)]
    if not own:
        raise NotAssignedError(
            f"is of the patient {patient!r}, and the images that it refers to are of {fitting[0].patient_id!r} "
            f"({_listed(fitting)}); correct the PatientID, or remove it"
        )
    return own


def _in_its_frame(drawing: Drawing, fitting: Sequence[SeriesHeaders]) -> list[SeriesHeaders]:
    frame = drawing.frame_of_reference_uid
    own = [series for series in fitting if not frame or not _frames(series) or frame in _frames(series)]
    if not own:
        raise NotAssignedError(
            f"lies in the frame of reference {frame}, and the slices that it names in another one "
            f"({_listed(fitting)}); export it again from where it was drawn",
            fitting,
        )
    return own


def _preferences(drawing: Drawing) -> list[Callable[[SeriesHeaders], bool]]:
    """What tells series apart that fit alike, one after the other."""
    return [
        lambda series: series.series_uid in drawing.file.references,
        lambda series: series.study_uid == drawing.file.study_uid,
        lambda series: not find_problems(series) and drawing.lies_on(series),
    ]


def _frames(series: SeriesHeaders) -> set[str]:
    return {header.frame_of_reference_uid for header in series.slices} - {""}


def _listed(several: Sequence[SeriesHeaders]) -> str:
    """Name series by modality, date and folder."""
    names = [f"{series.modality} of {series.slices[0].study_date}, {series.name}" for series in several[:4]]
    return "; ".join(names) + ("; ..." if len(several) > 4 else "")
