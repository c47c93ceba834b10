"""Writes DICOM SEG of phantoms. Needs the extra ``dicom``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from monai_ext.data.dicom.reading import read_dataset, require_extra
from monai_ext.data.phantoms.dicom import make_uid
from monai_ext.files import atomic_path


def write_seg(
    path: str | os.PathLike[str],
    series_files: Sequence[str | os.PathLike[str]],
    masks: Mapping[str, ArrayLike],
    *,
    fractional: bool = False,
    series_description: str = "Segmentation",
    omit_empty_frames: bool = True,
) -> Path:
    """Write a DICOM SEG of a series.

    Args:
        path: file to write.
        series_files: the series that was segmented, in the order of Z (as :func:`write_ct_series` returns them).
        masks: by segment label, [X, Y, Z] in the series' own grid.
        fractional: store probabilities (0 and 1) instead of bits.
        series_description: SeriesDescription.
        omit_empty_frames: leave out the frames of slices where a segment is not.

    Returns:
        ``path``.
    """
    require_extra()
    import highdicom as hd
    from pydicom.sr.codedict import codes

    images = [read_dataset(file) for file in series_files]
    series_uid = make_uid("seg", images[0].SeriesInstanceUID, series_description)
    algorithm = hd.AlgorithmIdentificationSequence("phantom", codes.DCM.ArtificialIntelligence, "1")
    segments = [
        hd.seg.SegmentDescription(
            number,
            name,
            codes.SCT.Tissue,
            codes.SCT.Tissue,
            hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm,
        )
        for number, name in enumerate(masks, start=1)
    ]
    pixels = np.stack([np.asarray(mask).astype(bool).transpose(2, 1, 0) for mask in masks.values()], axis=-1)
    seg = hd.seg.Segmentation(
        images,
        pixels.astype(np.float32) if fractional else pixels.astype(np.uint8),
        hd.seg.SegmentationTypeValues.FRACTIONAL if fractional else hd.seg.SegmentationTypeValues.BINARY,
        segments,
        series_instance_uid=series_uid,
        series_number=300,
        sop_instance_uid=make_uid("instance", series_uid),
        instance_number=1,
        manufacturer="phantom",
        manufacturer_model_name="phantom",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=omit_empty_frames,
        series_description=series_description,
    )
    with atomic_path(path) as temporary:
        seg.save_as(temporary)
    return Path(path)
