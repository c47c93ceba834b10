"""Crops: whole pixels, within the image, and the way back."""

from __future__ import annotations

import torch

from monai_ext.prompts.crops import Crop, box_crop, grow, is_small, mask_crop, paste, shrink, shrink_mask, widen


def test_a_box_holds_both_its_corners():
    crop = box_crop(torch.tensor([2.0, 3.0, 5.0, 3.0]), (8, 10))
    assert crop == Crop(2, 3, 6, 4)
    assert crop.size == (1, 4)
    assert crop.of(torch.arange(80).view(8, 10)).tolist() == [[32, 33, 34, 35]]


def test_a_box_stays_in_the_image():
    assert box_crop(torch.tensor([-3.0, 6.0, 30.0, 9.0]), (8, 10)) == Crop(0, 6, 10, 8)


def test_the_crop_of_a_mask_is_grown_by_a_tenth_on_each_side():
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[30:50, 40:70] = True
    assert mask_crop(mask) == Crop(37, 28, 73, 52)


def test_an_empty_or_tiny_mask_is_answered_by_the_whole_image():
    mask = torch.zeros(64, 96, dtype=torch.bool)
    assert mask_crop(mask) == Crop(0, 0, 96, 64)
    mask[5, 5] = True
    assert mask_crop(mask) == Crop(0, 0, 96, 64)
    mask[5:8, 5:8] = True
    assert mask_crop(mask) != Crop(0, 0, 96, 64)
    assert is_small(torch.tensor([0.0, 0.0, 1.0, 50.0]), (64, 96))


def test_there_and_back():
    smooth = torch.linspace(0, 1, 40)[:, None] * torch.linspace(1, 2, 30)
    back = grow(shrink(smooth[None], 64)[0], (40, 30))
    assert float((back - smooth).abs().max()) < 0.05
    assert shrink_mask(torch.ones(5, 9, dtype=torch.bool), 16).unique().tolist() == [1.0]


def test_pasted_crops_are_united():
    canvas = torch.full((4, 6), -20.0)
    paste(canvas, torch.tensor([[1.0, -1.0]]), Crop(1, 1, 3, 2))
    paste(canvas, torch.tensor([[-3.0, 2.0]]), Crop(1, 1, 3, 2))
    assert canvas[1].tolist() == [-20.0, 1.0, 2.0, -20.0, -20.0, -20.0]
    assert int((canvas > 0).sum()) == 2


def test_a_widened_crop_holds_both_the_old_one_and_the_window():
    assert widen(Crop(50, 50, 60, 55), (54.0, 52.0), 21, (100, 100)) == Crop(44, 42, 65, 63)
    assert widen(Crop(0, 50, 60, 55), (3.0, 52.0), 21, (100, 100)) == Crop(0, 42, 60, 63)
