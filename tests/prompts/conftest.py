"""A slow, obvious version of torch's bilinear interpolation, shared by the tests of masks and points."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

Map = list[list[float]]


@pytest.fixture(scope="session")
def resize_bilinear() -> Callable[[Map, tuple[int, int]], Map]:
    return _resize_bilinear


def _resize_bilinear(image: Map, size: tuple[int, int]) -> Map:
    # pixel centres at half-integers, edges repeated, no antialiasing
    rows, columns = len(image), len(image[0])
    resized = [[0.0] * size[1] for _ in range(size[0])]
    for i in range(size[0]):
        y = max((i + 0.5) * rows / size[0] - 0.5, 0.0)
        top, bottom, down = math.floor(y), min(math.floor(y) + 1, rows - 1), y - math.floor(y)
        for j in range(size[1]):
            x = max((j + 0.5) * columns / size[1] - 0.5, 0.0)
            left, right, along = math.floor(x), min(math.floor(x) + 1, columns - 1), x - math.floor(x)
            upper = image[top][left] * (1 - along) + image[top][right] * along
            lower = image[bottom][left] * (1 - along) + image[bottom][right] * along
            resized[i][j] = upper * (1 - down) + lower * down
    return resized
