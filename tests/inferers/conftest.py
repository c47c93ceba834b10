"""A tiny network of random weights, and images, references and their loader made in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_ext.inferers.reference import ReferenceLoader
from monai_ext.networks.sam import PromptableSam, build_compact


@pytest.fixture(scope="session")
def tiny_network() -> Callable[[int], PromptableSam]:
    """Seed -> a network of 64 x 64 pixels and 8 x 8 cells whose masks differ from prompt to prompt."""

    def build(seed: int = 0) -> PromptableSam:
        torch.manual_seed(seed)
        network = build_compact(image_size=64, stride=8, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=32).eval()
        with torch.no_grad():
            for embedding in network.prompt_encoder.point_embeddings:
                embedding.weight *= 4
        return network

    return build


@pytest.fixture(scope="session")
def make_image() -> Callable[..., MetaTensor]:
    """A smooth random image [C, H, W, D] in the input frame, H x W pixels of 1 mm, slices ``thickness`` mm apart."""

    def make(
        seed: int,
        size: tuple[int, int, int] = (40, 64, 1),
        channels: int = 1,
        plane_size: tuple[int, int] | None = None,
        origin: float = 0.0,
        thickness: float = 5.0,
    ) -> MetaTensor:
        rng = np.random.default_rng(seed)
        noise = ndimage.gaussian_filter(rng.normal(size=(channels, *size)), (0, 3, 3, 0))
        image = 255 * (noise - noise.min()) / np.ptp(noise)
        affine = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, thickness, origin], [0, 0, 0, 1.0]])
        meta = {"plane_size": plane_size or size[:2], "slice_axis": "S", "filename_or_obj": f"image{seed}.nii.gz"}
        return MetaTensor(torch.tensor(image, dtype=torch.float32), affine=torch.tensor(affine), meta=meta)

    return make


@pytest.fixture(scope="session")
def make_loader() -> Callable[..., ReferenceLoader]:
    """A loader whose "files" are (image [C, H, W, D], label [H, W, D]) by name; it counts what it loads."""

    def make(references: Mapping[str, tuple[MetaTensor, np.ndarray]], labels: dict[str, int]) -> ReferenceLoader:
        def transform(item: dict[str, Any]) -> dict[str, Any]:
            transform.loaded.append((item["image"], item["modality"]))  # type: ignore[attr-defined]
            return {
                "image": references[item["image"]][0],
                "label": torch.as_tensor(references[item["label"]][1])[None],
            }

        transform.loaded = []  # type: ignore[attr-defined]
        return ReferenceLoader(transform, labels)

    return make


@pytest.fixture(scope="session")
def disc() -> Callable[..., np.ndarray]:
    """Mask [H, W] of a disc."""

    def draw(size: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
        y, x = np.mgrid[: size[0], : size[1]]
        return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2).astype(np.int64)

    return draw
