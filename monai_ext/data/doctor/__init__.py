"""The doctor: what is wrong with a data list or a folder of DICOM files, before a run finds out.

:func:`examine` looks at a data list, :func:`examine_folder` at a folder; both list everything they find, and each
finding has one sentence and one fix. A run begins with ``warn_and_stop(examine(datalist, only=files, glance=True,
follow_up=False))``.
``python -m monai_ext.data.doctor --list_checks`` prints what is looked for.
"""

from __future__ import annotations

from monai_ext.data.doctor.examine import examine, examine_folder
from monai_ext.data.doctor.findings import Finding, stops
from monai_ext.data.doctor.report import warn_and_stop

__all__ = ["Finding", "examine", "examine_folder", "stops", "warn_and_stop"]
