from __future__ import annotations

import pytest

from monai_ext.data.phantoms import phantom_patient


@pytest.fixture(scope="session")
def visits():
    return phantom_patient(3)
