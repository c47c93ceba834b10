"""Tests of monai_ext.inferers.apscl, on a tiny network of random weights and images in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from monai_ext.errors import UserError
from monai_ext.inferers.apscl import ApsclInferer
from monai_ext.networks.prototype_net import PrototypeNet, build_prototype_net
from monai_ext.prompts.prototypes import lead

SIZE = (40, 64)  # H x W: three of eight rows of cells are padding
LABELS = {"lesion": 1, "organ": 2}
SIZES = {"latent": 4, "hidden": (8, 8), "prior_pool": 2, "mgd_width": 8}


@pytest.fixture
def network() -> PrototypeNet:
    torch.manual_seed(0)
    network = build_prototype_net(image_size=64, channels=16, options=SIZES)
    nn.init.normal_(network.enrichment.shift[-1].weight, std=0.3)
    return network.eval()


@pytest.fixture
def label(disc) -> np.ndarray:
    """[H, W, 3]: both structures on the middle slice, the lesion alone on the last."""
    both = np.where(disc(SIZE, (14, 20), 9), 1, 2 * disc(SIZE, (25, 45), 8))
    return np.stack([0 * both, both, (both == 1).astype(np.int64)], axis=-1)


@pytest.fixture
def loader(make_loader, make_image, label):
    other = np.roll(label, 5, axis=1)
    return make_loader(
        {"a": (make_image(1, (*SIZE, 3)), label), "b": (make_image(3, (*SIZE, 3)), other)},
        LABELS,
    )


class Counting:
    """Counts the images that a network encodes."""

    def __init__(self, network: PrototypeNet) -> None:
        self.images = 0
        network.trunk.register_forward_hook(self.count)

    def count(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.images += len(output)


def test_it_is_an_episode(network, loader, make_image, label):
    """What the inferer says is what the network says of support and query, seen apart."""
    target = make_image(2, (*SIZE, 2))
    logits = ApsclInferer(LABELS, loader, "middle")(target[None], network, "a", "a")[0].as_tensor()
    images = make_image(1, (*SIZE, 3)).as_tensor()[None]
    for channel, (value, middle) in enumerate({1: 2, 2: 1}.items()):  # of two annotated slices the second
        support = images[..., middle]
        mask = torch.as_tensor(label[None, ..., middle] == value).float()
        with torch.no_grad():
            for k in range(2):
                episode = network.run_episodes(support, mask, target.as_tensor()[None, ..., k])
                expected = lead(network.to_image(episode.scores, SIZE)[0])[1]
                found = logits[channel, ..., k]
                if bool((expected > 0).any()):
                    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_support_is_encoded_once(network, loader, make_image):
    counting = Counting(network)
    inferer = ApsclInferer(LABELS, loader, "middle", z_samples=2)
    slices = 2  # each structure has a middle slice of its own
    for seed in (2, 4):
        inferer(make_image(seed, (*SIZE, 3))[None], network, "a", "a")
    assert counting.images == slices + 2 * 3
    inferer(make_image(2, (*SIZE, 3))[None], network, "b", "b")
    assert counting.images == slices + 2 * 3 + slices + 3


def test_each_structure_is_served_by_its_own_middle_slice(network, make_loader, make_image, disc, caplog):
    """Two structures that no slice shows together: neither is lost, and rows and features are of its own slice."""
    apart = np.stack([disc(SIZE, (14, 20), 9), np.zeros(SIZE, int), 2 * disc(SIZE, (25, 45), 8)], axis=-1)
    loader = make_loader({"a": (make_image(1, (*SIZE, 3)), apart)}, LABELS)
    target = make_image(2, (*SIZE, 2))[None]
    logits, details = ApsclInferer(LABELS, loader, "middle").segment_case(target, network, "a", "a")
    served = {(row["label"], row["reference_slice"]) for row in details.rows}
    assert served == {("lesion", "0"), ("organ", "2")}
    for channel, (name, value) in enumerate(LABELS.items()):
        alone, of_one = ApsclInferer({name: value}, loader, "middle").segment_case(target, network, "a", "a")
        torch.testing.assert_close(logits[:, channel], alone[:, 0])
        rows = [row.get("features") for row in details.rows if row["label"] == name]
        assert rows == [row.get("features") for row in of_one.rows]
    assert "was not sought" not in caplog.text


def test_a_reference_without_the_structure_serves_nobody(network, make_loader, make_image, disc):
    """Of two references one does not show the structure: the other serves alone."""
    shown = np.stack([disc(SIZE, (14, 20), 9)] * 2, axis=-1)
    loader = make_loader(
        {"a": (make_image(1, (*SIZE, 2)), shown), "b": (make_image(3, (*SIZE, 2)), 0 * shown)}, {"lesion": 1}
    )
    inferer = ApsclInferer({"lesion": 1}, loader, "middle")
    target = make_image(2, (*SIZE, 2))[None]
    both = inferer(target, network, ["a", "b"], ["a", "b"])
    torch.testing.assert_close(both, inferer(target, network, "a", "a"))


def test_a_structure_that_no_serving_slice_shows_is_told(network, make_loader, make_image, disc, caplog):
    label = np.stack([disc(SIZE, (14, 20), 9), np.zeros(SIZE, int)], axis=-1)
    loader = make_loader({"a": (make_image(1, (*SIZE, 2)), label)}, {"lesion": 1})
    target = make_image(2, (*SIZE, 1))[None]  # its only slice is served by the reference's upper one
    ApsclInferer({"lesion": 1}, loader, "relative")(target, network, "a", "a")
    assert "lesion was not sought, since no slice of the reference that serves by --slice_match relative" in caplog.text


def test_another_support_gives_another_mask_and_the_first_its_own_again(network, loader, make_image):
    inferer, target = ApsclInferer({"lesion": 1}, loader), make_image(2, (*SIZE, 1))[None]
    first, other, again = (inferer(target, network, name, name).as_tensor() for name in ("a", "b", "a"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_several_supports_serve_together(network, loader, make_image, label):
    target = make_image(2, (*SIZE, 1))
    logits = ApsclInferer({"lesion": 1}, loader)(target[None], network, ["a", "b"], ["a", "b"])[0].as_tensor()
    images = [make_image(seed, (*SIZE, 3)).as_tensor()[..., 2] for seed in (1, 3)]
    masks = [torch.as_tensor(m[..., 2] == 1).float() for m in (label, np.roll(label, 5, axis=1))]
    with torch.no_grad():
        features = network.enrich(network.encode(torch.stack(images)).features).features
        support = network.make_support(features, network.shares(torch.stack(masks)), network.valid_share(SIZE))
        query = network.enrich(network.encode(target.as_tensor()[None, ..., 0]).features).features[0]
        expected = lead(network.to_image(network.compare(query, support)[None], SIZE)[0])[1]
    assert bool((expected > 0).any())
    torch.testing.assert_close(logits[0, ..., 0], expected, atol=1e-3, rtol=1e-3)


def test_a_structure_that_the_support_lacks_is_absent(network, loader, make_image):
    inferer = ApsclInferer(LABELS, loader, "relative")
    _, details = inferer.segment_case(make_image(2, (*SIZE, 3))[None], network, "a", "a")
    status = {(row["label"], row["slice"]): row["status"] for row in details.rows}
    assert [status["lesion", 0], status["organ", 0], status["organ", 2]] == ["reference_absent"] * 3
    assert "reference_absent" not in (status["lesion", 1], status["organ", 1], status["lesion", 2])


def test_slices_do_not_depend_on_one_another(network, loader, make_image):
    target = make_image(2, (*SIZE, 4))
    logits = ApsclInferer({"lesion": 1}, loader)(target[None], network, "a", "a")[0].as_tensor()
    order = [2, 0, 3, 1]
    shuffled = target.clone()
    shuffled[:] = target[..., order]
    again = ApsclInferer({"lesion": 1}, loader)(shuffled[None], network, "a", "a")[0].as_tensor()
    torch.testing.assert_close(again, logits[..., order])


def test_chunks_take_their_oracle_range(network, loader, make_image):
    inferer = ApsclInferer({"lesion": 1}, loader, "chunks")
    _, details = inferer.segment_case(make_image(2, (*SIZE, 6))[None], network, "a", "a", oracle_slices=[[1], [4]])
    assert [row["reference_slice"] for row in details.rows] == ["", "1", "2", "2", "2", ""]
    assert [row["status"] for row in details.rows][::5] == ["outside_reference"] * 2


def doubts(inferer: ApsclInferer, target, network: PrototypeNet, name: str) -> list[float]:
    _, details = inferer.segment_case(target, network, "a", "a")
    return [row["features"][name] for row in details.rows if name in row.get("features", {})]


@pytest.mark.slow
def test_doubt_is_said_of_what_was_found(network, loader, make_image):
    target = make_image(2, (*SIZE, 2))[None]
    plain, sampled = ApsclInferer({"lesion": 1}, loader), ApsclInferer({"lesion": 1}, loader, z_samples=5)
    assert torch.equal(*(inferer(target, network, "a", "a").as_tensor() for inferer in (plain, sampled)))
    assert not doubts(plain, target, network, "spread")
    distances = [doubts(inferer, target, network, "prototype_distance") for inferer in (plain, sampled)]
    assert distances[0] == distances[1]
    assert all(0 <= value <= 2 for value in distances[0])
    first, again = (doubts(sampled, target, network, "spread") for _ in range(2))
    assert first
    assert all(0 <= value <= 1 for value in first)
    assert again == first


def test_features_of_the_mask_are_far_from_no_prototype_of_their_own(network, loader, make_image):
    """A support that segments itself: the cells of its mask are nearer to its prototype than those of another image."""
    inferer = ApsclInferer({"lesion": 1}, loader, "middle")
    own, other = (doubts(inferer, make_image(k, (*SIZE, 3))[None], network, "prototype_distance") for k in (1, 7))
    assert own[-1] < other[-1]


def test_a_certain_prior_agrees_with_itself(network, loader, make_image):
    nn.init.zeros_(network.enrichment.scale[-1].weight), nn.init.zeros_(network.enrichment.shift[-1].weight)
    inferer = ApsclInferer({"lesion": 1}, loader, z_samples=3)
    assert doubts(inferer, make_image(2, (*SIZE, 1))[None], network, "spread") == [0.0]


def test_without_fem_there_is_no_z_to_draw(loader, make_image):
    network = build_prototype_net(image_size=64, channels=16, options={**SIZES, "fem": False})
    with pytest.raises(UserError, match="have no FEM"):
        ApsclInferer({"lesion": 1}, loader, z_samples=2)(make_image(2, (*SIZE, 1))[None], network, "a", "a")


def test_samples_are_not_negative(loader):
    with pytest.raises(UserError, match="--z_samples is -1"):
        ApsclInferer(LABELS, loader, z_samples=-1)
