"""Tests of monai_ext.prompts.points."""

from __future__ import annotations

import math

import pytest
import torch

from monai_ext.prompts.masks import valid_cells
from monai_ext.prompts.points import (
    argmax_points,
    cosine_maps,
    lowest_point,
    official_lowest_point,
    official_points,
    official_target_attention,
    target_attention,
)
from monai_ext.prompts.ties import TOLERANCE


def random_maps(n: int, grid: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, grid, grid, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def first_maximum(image: list[list[float]]) -> tuple[int, int]:
    """(x, y) of the first value, row by row, that is the largest or equal to it."""
    largest = max(value for row in image for value in row)
    return next((j, i) for i, row in enumerate(image) for j, value in enumerate(row) if value >= largest - TOLERANCE)


def test_maps_are_the_cosines_of_equation_2() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(3, 5, generator=generator)
    features = torch.randn(5, 4, 4, generator=generator)
    maps = cosine_maps(parts, features)
    for c in range(3):
        for i in range(4):
            for j in range(4):
                p, f = parts[c].tolist(), features[:, i, j].tolist()
                dot = sum(x * y for x, y in zip(p, f, strict=True))
                lengths = math.sqrt(sum(x * x for x in p)) * math.sqrt(sum(y * y for y in f))
                assert float(maps[c, i, j]) == pytest.approx(dot / lengths, abs=1e-6)


def test_maps_do_not_depend_on_lengths() -> None:
    generator = torch.Generator().manual_seed(1)
    parts, features = torch.randn(2, 5, generator=generator), torch.randn(5, 3, 3, generator=generator)
    torch.testing.assert_close(cosine_maps(7 * parts, 0.01 * features), cosine_maps(parts, features))


def test_zero_feature_is_similar_to_nothing() -> None:
    assert cosine_maps(torch.ones(1, 4), torch.zeros(4, 2, 2)).tolist() == [[[0, 0], [0, 0]]]


@pytest.mark.parametrize("stride", [4, 5])
def test_point_is_the_centre_of_the_best_cell(stride) -> None:
    maps = random_maps(5, 6)
    points = argmax_points(maps, stride)
    assert points.dtype == torch.float32
    for similarity, point in zip(maps.tolist(), points.tolist(), strict=True):
        column, row = first_maximum(similarity)
        pixels = [column * stride + k for k in range(stride)], [row * stride + k for k in range(stride)]
        assert point == [sum(pixels[0]) / stride, sum(pixels[1]) / stride]


def test_padding_is_never_chosen() -> None:
    size, stride = (13, 24), 4
    maps = random_maps(200, 6, seed=1)
    maps[:, 3:] += 2  # the padding looks best
    points = argmax_points(maps, stride, valid_cells(size, stride, (6, 6)))
    assert (points[:, 1] <= size[0] - 1).all()
    assert (points[:, 0] <= size[1] - 1).all()
    assert (argmax_points(maps, stride)[:, 1] > size[0] - 1).all()


def test_centre_beyond_a_thin_image_is_moved_into_it() -> None:
    size = (24, 1)
    maps = random_maps(1, 6)
    points = argmax_points(maps, 4, valid_cells(size, 4, (6, 6)), size)
    assert points[0, 0] == 0
    assert points[0, 1] == 4 * int(maps[0, :, 0].argmax()) + 1.5


def test_first_of_equal_cells_is_taken() -> None:
    maps = torch.zeros(1, 3, 3)
    maps[0, 1, 2] = maps[0, 2, 0] = 1
    assert argmax_points(maps, 1).tolist() == [[2, 1]]


def test_rounding_does_not_choose_among_equal_cells() -> None:
    maps = torch.zeros(50, 3, 3)
    maps[:, 1, 2] = maps[:, 2, 0] = 0.8
    maps += torch.rand(50, 3, 3, generator=torch.Generator().manual_seed(0)) * TOLERANCE / 4
    assert {tuple(point) for point in argmax_points(maps, 1).tolist()} == {(2, 1)}
    assert {tuple(lowest_point(-m[None], 1)[0].tolist()) for m in maps} == {(2, 1)}


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_peak_in_a_corner_gives_the_first_pixel_of_its_plateau(corner) -> None:
    """Beyond the centre of the outermost cell upsampling repeats the edge, but for rounding."""
    maps = torch.full((1, 6, 6), 0.1)
    maps[(0, *corner)] = 0.7
    x, y = official_points(maps, 48, (48, 48), (480, 480))[0].tolist()
    # the last cell's value is in pixels 22 and 23 of 24, so from 45 to 47 of 48, so from 455 on of 480
    assert (x, y) == tuple(0 if side == 0 else pytest.approx(455 * 48 / 480) for side in corner[::-1])


def test_nowhere_to_place_a_point_is_refused() -> None:
    with pytest.raises(ValueError, match="no cell is valid"):
        argmax_points(random_maps(1, 3), 4, torch.zeros(3, 3, dtype=torch.bool))


def test_lowest_point_is_the_minimum_of_the_average() -> None:
    maps = random_maps(4, 6, seed=2)
    valid = valid_cells((14, 24), 4, (6, 6))
    average = {
        (j, i): sum(float(maps[c, i, j]) for c in range(4)) / 4 for i in range(6) for j in range(6) if valid[i, j]
    }
    column, row = min(average, key=lambda cell: average[cell])
    assert lowest_point(maps, 4, valid).tolist() == [[column * 4 + 1.5, row * 4 + 1.5]]


def peaked_maps(n: int, seed: int) -> torch.Tensor:
    # the first map is lowered at its border; the others may peak there, where upsampling repeats the edge: ties
    maps = random_maps(n, 6, seed)
    maps[0] -= 2
    maps[0, 1:-1, 1:-1] += 2
    return maps


OFFICIAL_SIZES = [((48, 48), (48, 48)), ((36, 48), (15, 20)), ((48, 29), (52, 31))]


@pytest.fixture
def to_original(resize_bilinear):
    def steps(similarity, input_size, original_size):
        square = resize_bilinear(resize_bilinear(similarity.tolist(), (24, 24)), (48, 48))
        return resize_bilinear([row[: input_size[1]] for row in square[: input_size[0]]], original_size)

    return steps


@pytest.mark.parametrize(("input_size", "original_size"), OFFICIAL_SIZES)
def test_official_points_follow_the_authors_steps(to_original, input_size, original_size) -> None:
    maps = peaked_maps(3, seed=3)
    expected = []
    for similarity in maps:
        x, y = first_maximum(to_original(similarity, input_size, original_size))
        expected.append([x * input_size[1] / original_size[1], y * input_size[0] / original_size[0]])
    points = official_points(maps, 48, input_size, original_size)
    torch.testing.assert_close(points, torch.tensor(expected))


@pytest.mark.parametrize(("input_size", "original_size"), OFFICIAL_SIZES)
def test_official_lowest_point_is_the_minimum_of_the_average(to_original, input_size, original_size) -> None:
    maps = -peaked_maps(3, seed=4)
    enlarged = [to_original(similarity, input_size, original_size) for similarity in maps]
    negated = [[-sum(values) / 3 for values in zip(*rows, strict=True)] for rows in zip(*enlarged, strict=True)]
    x, y = first_maximum(negated)
    expected = [[x * input_size[1] / original_size[1], y * input_size[0] / original_size[0]]]
    points = official_lowest_point(maps, 48, input_size, original_size)
    torch.testing.assert_close(points, torch.tensor(expected))


def test_attention_ignores_padding_and_gives_it_no_bias():
    similarity = torch.tensor([[0.1, 0.5], [0.9, 100.0]])
    valid = torch.tensor([[True, True], [True, False]])
    z = torch.tensor([0.1, 0.5, 0.9])
    expected = torch.sigmoid((z - z.mean()) / z.std())
    bias = target_attention(similarity, valid)
    torch.testing.assert_close(bias[0].flatten()[:3], expected)
    assert bias[0, 1, 1] == 0


def test_attention_of_a_constant_map_is_even():
    even = torch.full((4, 4), 0.3)
    assert torch.equal(target_attention(even, torch.ones(4, 4, dtype=torch.bool)), torch.full((1, 4, 4), 0.5))
    torch.testing.assert_close(official_target_attention(even, 32, (32, 32), (50, 50)), torch.full((1, 4, 4), 0.5))


def test_official_attention_stretches_an_image_that_is_not_square():
    """Half of the square is padding; the map of the upper half is spread over all rows."""
    similarity = torch.zeros(8, 8)
    similarity[3] = 1.0
    bias = official_target_attention(similarity, 64, (32, 64), (32, 64))[0]
    assert int(bias.mean(dim=1).argmax()) in (6, 7)
