"""Tests of monai_ext.losses.semantic_alignment against the full-size form, pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_ext.losses.semantic_alignment import SemanticAlignment, upsampled_norms

IGNORE = 255


@pytest.fixture
def latent() -> Tensor:
    return torch.randn(3, 6, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pseudo_label() -> Tensor:
    """Three slices of 9 x 8: all classes but 3 and some unknown pixels; background alone; one class alone."""
    labels = torch.zeros(3, 9, 8, dtype=torch.long)
    labels[0, 2:5, 1:4], labels[0, 5:8, 3:7], labels[0, :1] = 1, 2, IGNORE
    labels[2] = 3
    return labels


def slow(latent: Tensor, labels: Tensor, temperature: float) -> float:
    full = F.normalize(F.interpolate(latent, labels.shape[1:], mode="bilinear", align_corners=False), dim=1)
    costs = []
    for image, label in zip(full, labels, strict=True):
        present = [k for k in range(4) if bool((label == k).any())]
        prototypes = {k: F.normalize(image[:, label == k].mean(dim=1), dim=0) for k in present}
        for h, w in torch.cartesian_prod(torch.arange(label.shape[0]), torch.arange(label.shape[1])).tolist():
            own = int(label[h, w])
            if own in (0, IGNORE):
                continue
            logits = {k: temperature * float(p @ image[:, h, w]) for k, p in prototypes.items()}
            costs.append(math.log(sum(math.exp(v) for v in logits.values())) - logits[own])
    return sum(costs) / len(costs)


@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_equals_the_full_size_form(latent, pseudo_label, temperature: float) -> None:
    loss = SemanticAlignment(temperature)(latent, pseudo_label, 4)
    assert float(loss) == pytest.approx(slow(latent, pseudo_label, temperature), rel=1e-5)


def test_gradient_is_that_of_the_full_size_form(latent, pseudo_label) -> None:
    """Prototypes are constants, features are not."""
    ours, theirs = (latent[:1].clone().requires_grad_() for _ in range(2))
    SemanticAlignment()(ours, pseudo_label[:1], 4).backward()
    label = pseudo_label[0]
    full = F.normalize(F.interpolate(theirs, label.shape, mode="bilinear", align_corners=False), dim=1)[0]
    prototypes = torch.stack([F.normalize(full.detach()[:, label == k].mean(dim=1), dim=0) for k in range(3)])
    logits = torch.einsum("kc,chw->khw", prototypes, full)
    F.cross_entropy(logits[None], label.where((label > 0) & (label != IGNORE), -1)[None], ignore_index=-1).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_norms_are_those_of_the_upsampled_features(latent) -> None:
    for size in ((9, 8), (48, 64), (3, 4)):
        expected = F.interpolate(latent, size, mode="bilinear", align_corners=False).norm(dim=1)
        torch.testing.assert_close(upsampled_norms(latent, size), expected, rtol=1e-4, atol=1e-6)


def test_slices_without_a_structure_cost_nothing(latent) -> None:
    latent.requires_grad_()
    loss = SemanticAlignment()(latent, torch.zeros(3, 9, 8, dtype=torch.long), 4)
    loss.backward()
    assert loss.item() == 0
    assert not bool(latent.grad.any())
    assert float(SemanticAlignment()(latent, torch.full((3, 9, 8), IGNORE), 4)) == 0


def test_a_class_alone_on_its_slice_is_certain(latent) -> None:
    """Absent classes are no rivals: the softmax has one entry."""
    assert float(SemanticAlignment()(latent, torch.full((3, 9, 8), 2), 4)) == pytest.approx(0, abs=1e-6)
