"""What is kept of the headers of a series."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_MODALITIES = frozenset({"CT", "MR", "PT", "NM", "CR", "DX", "MG", "XA", "US", "OPT", "OP", "OT", ""})


@dataclass(frozen=True)
class SliceHeader:
    """The header of one file; lengths in mm, LPS+ patient coordinates, None where the file does not say.

    Args:
        path: the file.
        series_uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        patient_id: PatientID.
        modality: such as "CT", "MR", "RTSTRUCT", "SEG".
        study_date: StudyDate (else SeriesDate, else AcquisitionDate).
        series_description: SeriesDescription.
        frame_of_reference_uid: FrameOfReferenceUID; "" where there is none.
        position: ImagePositionPatient, the centre of the first pixel.
        orientation: ImageOrientationPatient: direction of rising columns, then of rising rows.
        pixel_spacing: PixelSpacing: between rows, then between columns.
        slice_thickness: SliceThickness.
        rows: number of rows, 0 for what is no image.
        columns: number of columns.
        instance_number: InstanceNumber.
        frames: NumberOfFrames, 1 for an ordinary slice.
        gantry_tilt: GantryDetectorTilt in degrees.
        sop_instance_uid: SOPInstanceUID, by which RTSTRUCT and SEG refer to the slice.
        sop_class_uid: SOPClassUID.
        echo_time: EchoTime in ms (MR).
        is_localizer: whether ImageType calls it a localizer (scout).
        visit_date: StudyDate (else SeriesDate), which is the same in all files of one visit, as AcquisitionDate is not.
    """

    path: Path
    series_uid: str
    study_uid: str
    patient_id: str
    modality: str
    study_date: datetime.date | None
    series_description: str
    frame_of_reference_uid: str
    position: tuple[float, float, float] | None
    orientation: tuple[float, float, float, float, float, float] | None
    pixel_spacing: tuple[float, float] | None
    slice_thickness: float | None
    rows: int
    columns: int
    instance_number: int | None
    frames: int
    gantry_tilt: float | None
    sop_instance_uid: str = ""
    sop_class_uid: str = ""
    echo_time: float | None = None
    visit_date: datetime.date | None = None
    is_localizer: bool = False


@dataclass(frozen=True)
class SeriesHeaders:
    """The headers of one series, in the order of their files.

    Args:
        series_uid: SeriesInstanceUID.
        modality: of the first file.
        patient_id: of the first file.
        study_uid: of the first file.
        slices: one header a file.
    """

    series_uid: str
    modality: str
    patient_id: str
    study_uid: str
    slices: tuple[SliceHeader, ...]

    @classmethod
    def of(cls, slices: Sequence[SliceHeader]) -> SeriesHeaders:
        """Take headers for one series, whatever their UIDs say (CHAOS gives each file its own)."""
        first = slices[0]
        return cls(first.series_uid, first.modality, first.patient_id, first.study_uid, tuple(slices))

    @property
    def name(self) -> str:
        """How messages call the series: its folder, and its description where there is one."""
        first = self.slices[0]
        description = f" (series {first.series_description!r})" if first.series_description else ""
        return f"{first.path.parent}{description}"

    @property
    def key(self) -> Path:
        """What tells it from all others: its first file, for a SeriesInstanceUID may stand in two visits."""
        return self.slices[0].path

    @property
    def origin(self) -> dict[str, str]:
        """What a data list keeps of the series under ``dicom_series``, so that masks find their way back to it."""
        return {"folder": str(self.slices[0].path.parent), "uid": self.series_uid}

    @property
    def is_image(self) -> bool:
        """Whether it holds slices of an image (and no RTSTRUCT, SEG, dose or report)."""
        return self.modality in IMAGE_MODALITIES and any(header.rows for header in self.slices)
