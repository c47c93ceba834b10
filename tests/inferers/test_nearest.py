from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_ext.inferers.nearest import mean_feature, nearest_reference, reference_distances
from monai_ext.inferers.reference import Reference

SIZE = (40, 64)


def slow_mean(network, plane) -> np.ndarray:
    """Mean over the cells that hold image: of 8 x 8 cells, five rows of the eight."""
    features = network.encode(plane[None]).features[0].numpy()
    return np.mean([features[:, i, j] for i in range(8) for j in range(8) if i * 8 < SIZE[0]], axis=0)


def slow_distance(network, image, reference, match) -> float:
    found = []
    for k, m in enumerate(match):
        if m is not None:
            a, b = slow_mean(network, image[..., k]), slow_mean(network, reference[..., m])
            found.append(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return sum(found) / len(found) if found else math.inf


@pytest.fixture
def network(tiny_network):
    with torch.no_grad():
        yield tiny_network(3)


@pytest.fixture
def images(make_image):
    return [make_image(seed, (*SIZE, 3)).as_tensor() for seed in range(4)]


def as_reference(image) -> Reference:
    return Reference(MetaTensor(image), torch.zeros(1, *image.shape[1:], dtype=torch.int64))


def test_distances_are_those_of_the_formula(network, images):
    target, *others = images
    matches = [[0, 1, 2], [None, 0, 1], [None, None, None]]
    found = reference_distances(network, target, [as_reference(image) for image in others], matches)
    expected = [slow_distance(network, target, image, match) for image, match in zip(others, matches, strict=True)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert found[2] == math.inf
    assert abs(found[0] - found[1]) > 1e-5


def test_padding_does_not_count(network, images):
    plane = images[0][None, ..., 0]
    assert np.allclose(mean_feature(network, network.encode(plane)), slow_mean(network, plane[0]), atol=1e-5)


def test_the_most_alike_is_taken_whatever_its_label(network, images):
    target, *others = images
    references = [as_reference(image) for image in (others[0], target + 0.5, others[1])]
    matches = [[0, 1, 2]] * 3
    assert nearest_reference(network, target, references, matches) == 1
    for reference in references:
        reference.label += 1
    assert nearest_reference(network, target, references, matches) == 1


def test_of_equally_near_ones_the_latest(network, images):
    target, other, _, _ = images
    references = [as_reference(image) for image in (target, other, target)]
    assert nearest_reference(network, target, references, [[0, 1, 2]] * 3) == 2
    assert nearest_reference(network, target, references, [[None] * 3] * 3) == 2


def test_rounding_does_not_choose_among_equally_near_ones(network, images):
    target, other, _, _ = images
    noise = [1e-4 * torch.randn(other.shape, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    references = [as_reference(other + n) for n in noise]  # grey values from 0 to 255
    distances = reference_distances(network, target, references, [[0, 1, 2]] * 3)
    assert len(set(distances)) > 1
    assert nearest_reference(network, target, references, [[0, 1, 2]] * 3) == 2


def test_each_slice_of_the_target_is_encoded_once(network, images, monkeypatch):
    encoded = []
    monkeypatch.setattr(type(network), "encode", count(encoded, type(network).encode))
    target, *others = images
    reference_distances(network, target, [as_reference(image) for image in others], [[0, 1, None]] * 3)
    assert len(encoded) == 2 + 3 * 2


def count(calls, encode):
    def counted(self, planes):
        calls.append(planes)
        return encode(self, planes)

    return counted
