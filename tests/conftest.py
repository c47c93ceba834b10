"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real cases that MONAI_EXT_DATA names; tests that need it are skipped without."""
    folder = os.environ.get("MONAI_EXT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MONAI_EXT_DATA does not name the folder of real cases")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what runs whole bundles; ``make test-fast`` leaves these out, and tests marked so one by one."""
    for item in items:
        if "bundles" in item.path.parts:
            item.add_marker(pytest.mark.slow)
