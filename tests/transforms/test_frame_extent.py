from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_ext.transforms.frame_extent import FrameExtentd
from monai_ext.transforms.request import REQUEST
from monai_ext.transforms.sam_input import FRAME_EXTENT


@dataclass
class Grid:
    shape: tuple[int, ...]
    affine: np.ndarray | None


FILES = {
    "small": Grid((50, 40, 9), np.diag([1.0, 2, 5, 1])),  # 80 mm along H, 50 along W
    "wide": Grid((100, 20, 9), np.diag([1.5, 1, 5, 1])),  # 20, 150
    "frame.png": Grid((50, 40), None),
}


def extent(item, **options):
    image = MetaTensor(torch.zeros(1, 8, 8, 3), affine=torch.eye(4))
    image.meta.update(item.pop("meta", {}))
    return FrameExtentd("image", FILES.__getitem__, **options)({"image": image, **item}).get(FRAME_EXTENT)


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["small"], (80, 50)),
        ("small", (80, 50)),
        (["small", "wide"], (80, 150)),
        (["frame.png"], None),
        ([], None),
        (None, None),
    ],
)
def test_the_largest_of_the_references_counts(references, expected):
    assert extent({"reference_image": references}) == expected


def test_slices_may_be_cut_along_another_axis():
    assert extent({"reference_image": ["small"]}, slice_axis="R") == (45, 80)


def test_the_references_of_a_request_go_before():
    request = {REQUEST: {"reference_image": ["wide"]}}
    assert extent({"reference_image": ["small"], "meta": request}) == (20, 150)


def test_a_key_of_this_name_in_a_data_list_is_not_taken_for_it():
    assert extent({FRAME_EXTENT: (999.0, 999.0)}) is None
