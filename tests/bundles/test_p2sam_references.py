"""Runs in which a target goes on from the frame before it, or has several references."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

FAST = {"n_pos": [1, 1], "n_neg": [1, 1]}
ORDER = ("visit2", "visit0", "visit3", "visit1")  # of the list: not that of time


@pytest.fixture
def visits(tmp_path, write_list) -> str:
    """Four visits of a disc that moves among noise, listed out of order; visit 2 is annotated, too."""
    rng = np.random.default_rng(0)
    x, y = np.mgrid[:24, :20]
    cases = []
    for name in ORDER:
        visit = int(name[-1])
        label = np.repeat((np.hypot(x - 8 - 2 * visit, y - 9) < 4)[..., None], 2, axis=-1).astype(np.uint8)
        image = (100.0 * label + 30 * rng.normal(size=label.shape)).astype(np.float32)
        for kind, array in (("image", image), ("label", label)):
            nib.save(nib.Nifti1Image(array, np.diag([-2.0, -2, 6, 1])), tmp_path / f"{kind}{visit}.nii.gz")
        case = {"case": name, "patient": "p1", "visit": visit, "image": f"image{visit}.nii.gz"}
        cases.append({**case, "label": f"label{visit}.nii.gz"})
    return write_list({"dataset": "small", "modality": "MR", "labels": {"disc": 1}, "cases": cases})


def contents(folder: Path) -> dict[str, bytes]:
    tables = [folder / "prompts.csv", *(folder / "masks").iterdir(), *(folder / "cases").iterdir()]
    return {path.name: path.read_bytes() for path in tables}


def references(folder: Path) -> dict[str, set[str]]:
    with open(folder / "prompts.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {case: {row["reference"] for row in rows if row["case"] == case} for case in {row["case"] for row in rows}}


def run(run_bundle, visits: str, output_dir: Path, **options: Any) -> dict[str, bytes]:
    run_bundle("p2sam", "inference", datalist=visits, output_dir=str(output_dir), **FAST, **options)
    return contents(output_dir)


def test_a_resumed_run_goes_on_from_the_masks_that_are_there(run_bundle, visits, tmp_path, capsys):
    whole = run(run_bundle, visits, tmp_path / "whole", previous_box=True)
    assert whole.keys() >= {f"visit{visit}.nii.gz" for visit in (1, 2, 3)}
    again = tmp_path / "again"
    run(run_bundle, visits, again, previous_box=True)
    for missing in (("visit1",), ("visit2",), ("visit3",), ("visit1", "visit3")):
        for case in missing:
            (again / "masks" / f"{case}.nii.gz").unlink()
        capsys.readouterr()
        assert run(run_bundle, visits, again, previous_box=True) == whole
        assert f"{3 - len(missing)} of 3 cases are finished" in capsys.readouterr().out


def test_a_shard_gives_what_the_whole_gives(run_bundle, visits, tmp_path):
    whole = run(run_bundle, visits, tmp_path / "whole", previous_box=True)
    for shard in ("0/2", "1/2"):
        run_bundle(
            "p2sam", "inference", datalist=visits, output_dir=str(tmp_path), previous_box=True, shard=shard, **FAST
        )
    parts = [contents(folder) for folder in sorted(tmp_path.glob("shard-*")) if list((folder / "masks").glob("*"))]
    assert len(parts) == 1, "a patient stays in one shard"
    assert parts[0] == whole


def test_another_first_frame_runs_all_that_follow_again(run_bundle, visits, tmp_path, capsys):
    run(run_bundle, visits, tmp_path / "out", previous_box=True)
    image = nib.load(tmp_path / "image2.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 5, image.affine), tmp_path / "image2.nii.gz")
    capsys.readouterr()
    run(run_bundle, visits, tmp_path / "out", previous_box=True)
    assert "1 of 3 cases are finished" in capsys.readouterr().out  # visit 1, which comes before


@pytest.mark.parametrize("choice", ["all", "nearest"])
def test_references_are_annotated_images_of_earlier_visits(run_bundle, visits, tmp_path, choice):
    run(run_bundle, visits, tmp_path / "out", reference_visit=choice)
    served = references(tmp_path / "out")
    assert served["visit1"] == {"visit0"}
    if choice == "all":
        assert (served["visit2"], served["visit3"]) == ({"visit0+visit1"}, {"visit0+visit1+visit2"})
    else:
        assert all(len(names) == 1 and "+" not in next(iter(names)) for names in served.values())
