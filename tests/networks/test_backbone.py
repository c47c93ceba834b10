"""The protocols that methods ask for, and embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.networks.backbone import Embeddings, Encoder, PromptableNetwork
from monai_ext.networks.sam import build_compact

TINY = {"image_size": 64, "channels": (16, 16, 32, 32), "blocks": (1, 1, 1), "width": 32}


class Trunk(nn.Module):
    """A plain convolutional trunk: all that a method without prompts needs."""

    image_size, grid, stride = 64, 8, 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 8, stride=8)

    @property
    def device(self) -> torch.device:
        return self.layer.weight.device

    def encode(self, images: Tensor) -> Embeddings:
        height, width = images.shape[-2:]
        square = F.pad(images.expand(-1, 3, -1, -1), (0, 64 - width, 0, 64 - height))
        return Embeddings(self.layer(square), (height, width))

    def to_image(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(logits, (64, 64), mode="bilinear")[..., : size[0], : size[1]]

    def encoder_state(self) -> dict[str, Tensor]:
        return self.state_dict()


def test_a_promptable_network_is_an_encoder_too():
    network = build_compact(**TINY)
    assert isinstance(network, PromptableNetwork)
    assert isinstance(network, Encoder)
    assert (network.image_size, network.grid, network.stride) == (64, 8, 8)


def test_a_trunk_is_an_encoder_alone():
    assert isinstance(Trunk(), Encoder)
    assert not isinstance(Trunk(), PromptableNetwork)


def test_images_are_brought_to_the_network():
    network = build_compact(**TINY).to("cpu")
    assert network.device == torch.device("cpu")
    assert network.encode(torch.zeros(1, 1, 64, 48)).size == (64, 48)


def test_whatever_changes_an_embedding_is_in_the_state_of_the_encoder():
    network = build_compact(**TINY).eval()
    before = {name: value.clone() for name, value in network.encoder_state().items()}
    assert {"mean", "std"} < set(before)
    with torch.no_grad():
        for parameter in network.mask_decoder.parameters():
            parameter.add_(1)
        assert all(torch.equal(value, before[name]) for name, value in network.encoder_state().items())
        next(network.image_encoder.parameters()).add_(1)
    assert any(not torch.equal(value, before[name]) for name, value in network.encoder_state().items())


def test_embeddings_are_taken_by_index_and_slice() -> None:
    embeddings = Embeddings(torch.arange(3.0).view(3, 1, 1, 1), (5, 6))
    assert [e.features.flatten().tolist() for e in embeddings] == [[0], [1], [2]]
    assert embeddings[-1].features.flatten().tolist() == [2]
    assert embeddings[1:].features.flatten().tolist() == [1, 2]
    assert embeddings[1:].size == (5, 6)
    assert len(embeddings[:2]) == 2
