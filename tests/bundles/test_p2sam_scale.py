"""One scale for a patient: visits that were cropped or are larger in plane, with the weights that are shipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from monai_ext.data.phantoms import write_phantom_patient
from monai_ext.evaluation.table import read_rows

BUNDLE = Path(__file__).parents[2] / "bundles" / "p2sam"
VISITS = (0, 1)


def crop(path: Path, share: float) -> None:
    """Cut a file of the phantom to a share of each side in plane, around its centre; more than 1: pad it with 0."""
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    size = [round(share * side) for side in array.shape[:2]]
    low = [(side - new) // 2 for side, new in zip(array.shape, size, strict=False)]
    padded = np.pad(array, [(max(0, -start), max(0, -start) + 1) for start in low] + [(0, 0)])
    starts = [max(0, start) for start in low]
    cut = padded[starts[0] : starts[0] + size[0], starts[1] : starts[1] + size[1]]
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :2] @ low
    nib.save(nib.Nifti1Image(cut, affine), path)


@pytest.fixture(scope="module")
def dice_of(tmp_path_factory) -> Callable[[dict[int, float]], float]:
    """Visit -> share of its sides; the mean Dice of visit 1, served by visit 0."""
    known: dict[str, float] = {}

    def run(shares: dict[int, float]) -> float:
        if str(shares) in known:
            return known[str(shares)]
        folder = tmp_path_factory.mktemp("patient")
        path = write_phantom_patient(folder)
        datalist = json.loads(path.read_text())
        datalist["cases"] = [case for case in datalist["cases"] if case["visit"] in VISITS]
        path.write_text(json.dumps(datalist))
        for visit, share in shares.items():
            for kind in ("image", "label"):
                crop(folder / f"visit{visit}_{kind}.nii.gz", share)
        configs = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("inference", "evaluate")]
        options = {"datalist": str(path), "output_dir": str(folder / "out"), "checkpoint": "compact_chaos"}
        workflow = ConfigWorkflow(
            configs, logging_file=False, workflow_type="infer", bundle_root=str(BUNDLE), device="cpu", **options
        )
        workflow.initialize()
        workflow.run()
        mask = nib.load(folder / "out" / "masks" / "phantom_visit1.nii.gz")
        image = nib.load(folder / "visit1_image.nii.gz")
        assert mask.shape == image.shape
        np.testing.assert_array_equal(mask.affine, image.affine)
        found = [row.value for row in read_rows(folder / "out" / "metrics.csv") if row.metric == "dice"]
        known[str(shares)] = float(np.mean([value for value in found if value is not None]))
        return known[str(shares)]

    return run


@pytest.mark.parametrize(
    ("shares", "loss"),
    [({1: 0.8}, 0.05), ({0: 0.8}, 0.05), ({1: 1.3}, 0.08), ({0: 1.3}, 0.18)],  # the last two show it 1.3 times smaller
)
def test_a_cropped_or_larger_visit_is_segmented_like_the_whole(dice_of, shares, loss):
    assert dice_of(shares) > dice_of({}) - loss
