"""Phantoms that stand in for patients: random labelled slices to train on, a follow-up patient, cells in a dish.

Nothing here comes from a real image. :func:`random_slice` draws one MR-like or endoscopy-like image with
a few labelled structures, fast enough to draw every training item anew; :func:`phantom_patient` is one
patient at three visits (NIfTI by :func:`write_phantom_patient`), :func:`phantom_cells` a video of two alike cells of
which one is followed (PNG by :func:`write_phantom_cells`), :func:`phantom_stream` pictures of one kind of lesion, one
after the other (PNG by :func:`write_phantom_stream`). All are functions of their seed alone.
"""

from __future__ import annotations

from monai_ext.data.phantoms.cells import CELL_LABELS, phantom_cells
from monai_ext.data.phantoms.patient import PATIENT_LABELS, PhantomVisit, phantom_patient
from monai_ext.data.phantoms.random_slices import random_slice
from monai_ext.data.phantoms.stream import STREAM_LABELS, phantom_stream
from monai_ext.data.phantoms.writing import (
    write_phantom_cells,
    write_phantom_cohort,
    write_phantom_patient,
    write_phantom_stream,
)

__all__ = [
    "CELL_LABELS",
    "PATIENT_LABELS",
    "STREAM_LABELS",
    "PhantomVisit",
    "phantom_cells",
    "phantom_patient",
    "phantom_stream",
    "random_slice",
    "write_phantom_cells",
    "write_phantom_cohort",
    "write_phantom_patient",
    "write_phantom_stream",
]
