"""Phantom DICOM: numbers of files and decimal strings."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from monai_ext.data.phantoms.dicom import _decimal, write_ct_series


def test_drop_and_reverse(tmp_path):
    files = write_ct_series(tmp_path, np.zeros((4, 4, 5)), np.eye(4), reverse=True, drop=(1,))
    assert [path.name for path in files] == ["1-05.dcm", "1-03.dcm", "1-02.dcm", "1-01.dcm"]
    assert [pydicom.dcmread(path).ImagePositionPatient[2] for path in files] == [0, 2, 3, 4]


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1 / 3, -1 / 3e5, -12345.678901234, 1e-12, -9.99999999999e-7, 123456.789, 1.0]
)
def test_decimals_fit_and_are_near(value):
    text = _decimal(value)
    assert len(text) <= 16
    assert float(text) == pytest.approx(value, rel=1e-7, abs=1e-9)
    assert not text.startswith("-0") or float(text) < 0
