"""Tests of monai_ext.transforms.augment."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from monai_ext.transforms.augment import BatchAugment, ScribbleAugment

STILL = BatchAugment(rotation=0, scale=(1, 1), shear=0, shift=0, flip=0, intensity=0, blur=0)
GEOMETRY = dataclasses.replace(BatchAugment(), intensity=0, blur=0)
SIZE = 64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6, channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Random images, labels of 8 x 8 squares, and images that fill 48 rows and 56 columns of the square."""
    generator = seeded(9)
    valid = torch.zeros(count, 1, SIZE, SIZE)
    valid[..., :48, :56] = 1
    image = torch.rand(count, channels, SIZE, SIZE, generator=generator) * 255 * valid
    label = torch.randint(0, 4, (count, 1, SIZE // 8, SIZE // 8), generator=generator).float()
    return image, label.repeat_interleave(8, 2).repeat_interleave(8, 3) * valid, valid


def test_settings_of_no_change_change_nothing() -> None:
    given = batch()
    image, label, valid = STILL(*given, seeded())
    torch.testing.assert_close(image, given[0], atol=0.01, rtol=0)
    assert torch.equal(label, given[1])
    assert torch.equal(valid, given[2])


def test_shapes_and_ranges_stay() -> None:
    given = batch()
    result = BatchAugment()(*given, seeded())
    assert [r.shape for r in result] == [g.shape for g in given]
    assert float(result[0].min()) >= 0
    assert float(result[0].max()) <= 255
    assert set(result[1].unique().tolist()) <= {0, 1, 2, 3}
    assert set(result[2].unique().tolist()) == {0, 1}


def test_label_and_valid_move_with_the_image() -> None:
    """The image holds its own coordinates, so it says where each pixel of the label must come from."""
    _, label, valid = batch(12)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    filled = torch.ones_like(valid)
    image = torch.stack([columns, rows, torch.full_like(rows, 200)]).float().expand(12, -1, -1, -1)
    where, moved, _ = GEOMETRY(image, label, filled, seeded())
    _, _, moved_valid = GEOMETRY(image, label, valid, seeded())
    u, v, full = where.unbind(1)
    ties = ((u % 1 - 0.5).abs() < 0.01) | ((v % 1 - 0.5).abs() < 0.01)
    b, y, x = ((full > 199.9) & ~ties).nonzero().unbind(1)  # where the image does not fade into nothing
    assert len(b) > 12 * SIZE * SIZE / 2
    row, column = v[b, y, x].round().long(), u[b, y, x].round().long()
    assert torch.equal(moved[b, 0, y, x], label[b, 0, row, column])
    assert torch.equal(moved_valid[b, 0, y, x], valid[b, 0, row, column])
    assert not torch.equal(moved, label)


def test_image_of_the_label_stays_the_label() -> None:
    _, label, _ = batch(6)
    filled = torch.ones_like(label)
    structure = (label == 2).float()
    image, moved, _ = GEOMETRY(structure.expand(-1, 3, -1, -1) * 255, structure, filled, seeded())
    differ = ((image[:, :1] > 127.5) != (moved > 0.5)).float().mean()
    assert float(differ) < 0.01  # interpolated outlines
    assert float(moved.mean()) > 0.05


def test_nothing_lies_outside_the_valid_part() -> None:
    image, label, valid = BatchAugment(noise=0.5, contrast=0.5, intensity=1.0, blur=1.0)(*batch(), seeded())
    assert not bool((image * (1 - valid)).any())
    assert not bool((label * (1 - valid)).any())
    assert 0 < float(valid.mean()) < 1


@pytest.mark.parametrize(
    ("settings", "matrix"),
    [
        ({"rotation": 30.0}, "rotation"),
        ({"scale": (0.5, 2.0)}, "scale"),
        ({"flip": 1.0}, "mirror"),
        ({"vertical_flip": 1.0}, "upside down"),
        ({"shear": 0.4142}, "shear"),
        ({"shift": 0.1}, "shift"),
    ],
)
def test_extent_of_the_geometry(settings, matrix: str) -> None:
    """The map from output to source pixels, fitted to images of coordinates, stays within the settings."""
    augment = dataclasses.replace(STILL, **settings)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    x, y = columns - 31.5, rows - 31.5
    image = torch.stack([columns, rows, rows]).float().expand(200, -1, -1, -1)
    one = torch.ones(200, 1, SIZE, SIZE)
    where, _, _ = augment(image, one, one, seeded())
    source = where[:, :2, 28:36, 28:36].flatten(2) - 31.5
    design = torch.stack([x[28:36, 28:36].flatten(), y[28:36, 28:36].flatten(), torch.ones(64)], dim=1)
    fit = torch.linalg.lstsq(design.expand(200, -1, -1), source.transpose(1, 2)).solution.transpose(1, 2)
    linear, shift = fit[:, :, :2], fit[:, :, 2]
    determinant = torch.linalg.det(linear)
    angles = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    if matrix == "rotation":
        assert 25 < float(angles.abs().max()) <= 30.01
        torch.testing.assert_close(determinant, torch.ones(200), atol=1e-3, rtol=0)
    elif matrix == "scale":  # magnified by 2: half as many source pixels
        assert 0.5 - 1e-3 <= float(determinant.min().sqrt()) < 0.55
        assert 1.8 < float(determinant.max().sqrt()) <= 2.0 + 1e-3
        assert float(determinant.log().mean().abs()) < 0.15
    elif matrix == "upside down":
        torch.testing.assert_close(linear, torch.tensor([[1.0, 0], [0, -1]]).expand(200, -1, -1), atol=1e-3, rtol=0)
    elif matrix == "shear":  # by up to 22.5 degrees
        assert 0.39 < float(linear[:, 0, 1].abs().max()) <= 0.4142 + 1e-3
        torch.testing.assert_close(linear[:, 1], torch.tensor([0.0, 1]).expand(200, -1), atol=1e-3, rtol=0)
    elif matrix == "mirror":
        torch.testing.assert_close(linear, torch.tensor([[-1.0, 0], [0, 1]]).expand(200, -1, -1), atol=1e-3, rtol=0)
    else:
        assert 0.095 * SIZE < float(shift.abs().max()) <= 0.1 * SIZE + 0.01
        assert float(shift.mean(dim=0).abs().max()) < 0.01 * SIZE


def test_share_of_mirrored_slices() -> None:
    image = torch.zeros(400, 1, 8, 8)
    image[..., :4] = 200
    one = torch.ones(400, 1, 8, 8)
    mirrored, _, _ = dataclasses.replace(STILL, flip=0.2)(image, one, one, seeded())
    assert float((mirrored[:, 0, 0, 7] > 100).float().mean()) == pytest.approx(0.2, abs=0.06)


def test_brightness_is_a_factor() -> None:
    ramp = torch.linspace(0, 120, SIZE).expand(100, 3, SIZE, SIZE)
    one = torch.ones(100, 1, SIZE, SIZE)
    settings = {"brightness": (0.6, 1.6), "contrast": 0, "gamma": (1, 1), "bias": 0, "noise": 0}
    image, _, _ = dataclasses.replace(STILL, **settings, intensity=1.0)(ramp, one, one, seeded())
    factors = image[:, 0, 0, -1] / 120
    torch.testing.assert_close(image, ramp * factors.view(-1, 1, 1, 1), atol=0.01, rtol=0)
    assert 0.6 <= float(factors.min()) < 0.65
    assert 1.55 < float(factors.max()) <= 1.6
    some, _, _ = dataclasses.replace(STILL, **settings, intensity=0.3)(ramp, one, one, seeded())
    changed = (some - ramp).abs().flatten(1).max(dim=1).values > 0.1
    assert 0.15 < float(changed.float().mean()) < 0.45


def test_grey_values_change_in_the_same_way_in_all_channels() -> None:
    grey = torch.full((8, 3, SIZE, SIZE), 100.0)
    one = torch.ones(8, 1, SIZE, SIZE)
    image, _, _ = dataclasses.replace(STILL, intensity=1.0, blur=0.5)(grey, one, one, seeded())
    torch.testing.assert_close(image[:, 0], image[:, 2])
    assert not torch.allclose(image, grey, atol=5)


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("noise", 0.08, lambda i, o: float((o - i).std()) < 0.08 * 255),
        ("gamma", (2.0, 2.0), lambda i, o: torch.allclose(o, 255 * (i / 255) ** 2, atol=0.05)),
        ("bias", 0.3, lambda i, o: bool(((o / i - 1).abs() <= 0.3 + 1e-4).all())),
        (
            "contrast",
            0.2,
            lambda i, o: bool(((o - i).abs() <= (i - 127.5).abs() * 0.2 + 0.1 * 255 + 0.01).all()),
        ),
    ],
)
def test_extent_of_each_change_of_grey_values(setting, value, expected) -> None:
    none = {"gamma": (1.0, 1.0), "contrast": 0.0, "bias": 0.0, "noise": 0.0}
    augment = dataclasses.replace(STILL, intensity=1.0, **{**none, setting: value})
    image = torch.linspace(60, 180, SIZE).expand(5, 1, SIZE, SIZE).contiguous()
    one = torch.ones(5, 1, SIZE, SIZE)
    changed, _, _ = augment(image, one, one, seeded())
    assert expected(image, changed)
    assert not torch.allclose(changed, image, atol=1)


def test_probability_of_grey_value_changes() -> None:
    augment = dataclasses.replace(STILL, intensity=0.3, bias=0, contrast=0, noise=0, gamma=(2, 2))
    image, one = torch.full((500, 1, 8, 8), 100.0), torch.ones(500, 1, 8, 8)
    changed, _, _ = augment(image, one, one, seeded())
    assert float((changed[:, 0, 4, 4] < 90).float().mean()) == pytest.approx(0.3, abs=0.06)


@pytest.mark.slow
def test_inverted_images_keep_labels_and_padding() -> None:
    given = batch()
    image, label, _ = dataclasses.replace(STILL, invert=1.0)(*given, seeded())
    torch.testing.assert_close(image, (255 - given[0]) * given[2], atol=0.01, rtol=0)
    assert torch.equal(label, given[1])
    turned = dataclasses.replace(STILL, invert=0.5)(*batch(400), seeded())[0].mean((1, 2, 3))
    plain = STILL(*batch(400), seeded())[0].mean((1, 2, 3))
    assert ((turned - plain).abs() > 0.1).float().mean() == pytest.approx(0.5, abs=0.1)


def test_same_generator_same_batch() -> None:
    given = batch()
    torch.manual_seed(1)
    first = BatchAugment()(*given, seeded(3))
    torch.manual_seed(2)
    second = BatchAugment()(*given, seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], BatchAugment()(*given, seeded(4))[1])


def test_input_is_not_changed() -> None:
    given = batch()
    copies = [g.clone() for g in given]
    BatchAugment(blur=1.0)(*given, seeded())
    assert all(torch.equal(g, c) for g, c in zip(given, copies, strict=True))


def slices(count: int = 4, size: int = 32) -> tuple[Tensor, Tensor]:
    generator = seeded(1)
    image = torch.rand(count, 1, size, size, generator=generator)
    return image, torch.randint(0, 4, (count, 2, size, size), generator=generator, dtype=torch.uint8)


def test_quarter_turns_and_mirrors_move_image_and_maps_alike_and_change_no_value() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8).repeat(40, 1, 1, 1)
    turned, maps = ScribbleAugment(probability=1.0)(image, image.to(torch.uint8).repeat(1, 2, 1, 1), seeded())
    assert torch.equal(maps, turned.to(torch.uint8).repeat(1, 2, 1, 1))
    allowed = {tuple(torch.rot90(image[0, 0], k).flip(a).flatten().tolist()) for k in range(4) for a in (0, 1)}
    seen = {tuple(one.flatten().tolist()) for one in turned[:, 0]}
    assert seen <= allowed
    assert len(seen) > 3


def test_small_rotations_fill_from_outside_with_zero_and_ignore() -> None:
    image, maps = torch.ones(1, 1, 33, 33), torch.full((1, 2, 33, 33), 3, dtype=torch.uint8)
    turned, moved = ScribbleAugment()._rotate(image[0], maps[0], 20)
    assert set(moved.unique().tolist()) == {3, 255}
    assert moved.dtype == torch.uint8
    assert (moved[:, 0, 0] == 255).all()
    assert turned[0, 0, 0] == 0
    assert turned[0, 16, 16] == 1
    for y in range(33):  # the pixel's centre, turned back by a slow hand, lies in the slice or outside
        for x in range(33):
            cos, sin = math.cos(math.radians(20)), math.sin(math.radians(20))
            back = (cos * (x - 16) - sin * (y - 16) + 16, sin * (x - 16) + cos * (y - 16) + 16)
            inside = all(-0.5 <= v <= 32.5 for v in back)
            assert bool((moved[:, y, x] == 3).all()) is inside


def test_half_of_the_slices_are_turned_and_half_of_the_rest_rotated() -> None:
    image, maps = slices(400, 16)
    changed, moved = ScribbleAugment()(image, maps, seeded())
    rotated = (moved == 255).flatten(1).any(1).float().mean()
    still = (changed == image).flatten(1).all(1).float().mean()
    assert 0.17 < rotated < 0.27  # 0.25, but for the smallest angles
    assert still == pytest.approx(0.25, abs=0.07)


def test_scribble_augment_follows_the_generator_and_leaves_its_input() -> None:
    image, maps = slices()
    given = image.clone(), maps.clone()
    torch.manual_seed(1)
    first = ScribbleAugment()(image, maps, seeded(5))
    torch.manual_seed(2)
    again = ScribbleAugment()(image, maps, seeded(5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(image, given[0])
    assert torch.equal(maps, given[1])


def test_elastic_displacement_is_smooth_and_of_the_size_of_its_formula() -> None:
    image = torch.zeros(2, 1, SIZE, SIZE)
    elastic = dataclasses.replace(STILL, elastic=10.0, smoothness=3.0)
    field = elastic._displacement(image, seeded())
    noise = torch.rand((4, 1, SIZE, SIZE), generator=seeded()) * 2 - 1
    slow = np.stack([ndimage.gaussian_filter(plane, 3.0, mode="mirror") for plane in noise[:, 0].numpy()])
    expected = torch.from_numpy(slow).view(2, 2, SIZE, SIZE).permute(0, 2, 3, 1) * 10 * 2 / SIZE
    torch.testing.assert_close(field, expected, atol=1e-4, rtol=0)


def test_elastic_displacement_moves_image_and_label_alike() -> None:
    _, label, valid = batch()
    elastic = dataclasses.replace(STILL, elastic=40.0, smoothness=4.0)
    moved, moved_label, _ = elastic(label.expand(-1, 3, -1, -1) * 60, label, valid, seeded())
    assert not torch.equal(moved_label, label)
    inside = (moved[:, :1] % 60 < 0.01).float()  # where bilinear sampling saw one value alone
    assert inside.mean() > 0.3
    torch.testing.assert_close((moved[:, :1] / 60 - moved_label) * inside, torch.zeros_like(label), atol=0.01, rtol=0)
