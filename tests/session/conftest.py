from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_ext.data.manifest import DataList

CONFIG = """
seed: 0
n_pos: [1, 3]
output_dir: out
allow_overlap: false
evaluator: {_target_: SupervisedEvaluator, handlers: [{_target_: A, output_dir: x}]}
"""


@pytest.fixture
def config(tmp_path) -> str:
    (tmp_path / "inference.yaml").write_text(CONFIG)
    return str(tmp_path / "inference.yaml")


@pytest.fixture
def datalist() -> DataList:
    return DataList(dataset="ACDC", labels={"RV": 1, "MYO": 2, "LV": 3}, cases=[])


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle with two weights, one of them with its record."""
    models = tmp_path / "bundle" / "models"
    models.mkdir(parents=True)
    for name in ("compact_acdc", "compact_chaos"):
        torch.save({"w": torch.zeros(1)}, models / f"{name}.pt")
    return tmp_path / "bundle"
