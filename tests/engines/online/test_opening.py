"""Tests of monai_ext.engines.online.opening."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from monai_ext.engines.online.opening import open_learners
from monai_ext.errors import UserError


@pytest.mark.parametrize("names", [("left kidney", "left_kidney"), ("a/b", "a\\b"), ("..",), (" ",)])
def test_structures_that_would_share_a_folder_are_refused(names, tmp_path) -> None:
    labels = {name: value for value, name in enumerate(names, start=1)}
    with pytest.raises(UserError, match="learned in a folder of its name"):
        open_learners(labels, tmp_path, cast(Any, SimpleNamespace(device="cpu")), "sam", {}, "mean_crop")
    assert not list(tmp_path.iterdir())


def test_each_structure_has_a_folder(tmp_path) -> None:
    labels = {"left kidney": 1, "Leber/2": 2, "\u5fc3": 3}
    open_learners(labels, tmp_path, cast(Any, SimpleNamespace(device="cpu")), "sam", {}, "mean_crop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Leber_2", "left_kidney", "\u5fc3"]
