"""Stored cases of several patients with classes at known places, for tests of episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_ext.data.slice_store import StoredCase, count_pixels

SIDE = 32
ORGANS = ("liver", "kidney", "spleen")


def few_shot_case(
    folder: Path,
    name: str,
    shown: list[tuple[str, ...]],
    patient: str | None = None,
    dataset: str = "Toy",
    modality: str = "MR",
    first: int = 0,
) -> StoredCase:
    """Store a case whose slice k shows the organs ``shown[k]``: 8 x 8 squares side by side, brighter than the body.

    ``first`` is the number of its first slice in the case.
    """
    case = StoredCase(name, patient or name, dataset, modality, ORGANS, str(folder / f"{dataset}_{name}"))
    labels = np.zeros((len(shown), SIDE, SIDE), np.uint8)
    for k, organs in enumerate(shown):
        for organ in organs:
            place = ORGANS.index(organ)
            labels[k, 4:12, 10 * place : 10 * place + 8] = 1 + place
    rng = np.random.default_rng(len(name))
    images = (60 + 50 * labels + rng.integers(0, 10, labels.shape)).astype(np.uint8)
    arrays = {
        "image": images[:, None],
        "label": labels,
        "pixels": count_pixels(labels, len(ORGANS)),
        "slices": first + np.arange(len(shown)),
        "affine": np.eye(4),
    }
    for what, array in arrays.items():
        np.save(f"{case.stem}_{what}.npy", array)
    return case


def few_shot_cases(folder: Path) -> list[StoredCase]:
    """Three patients; the kidney of c is alone in its data set's other modality."""
    return [
        few_shot_case(folder, "a", [(), ("liver",), ("liver", "kidney"), ("kidney", "spleen")]),
        few_shot_case(folder, "b", [("liver",), ("liver", "spleen"), ("kidney",)], first=5),
        few_shot_case(folder, "c", [("liver", "kidney"), ()]),
    ]
