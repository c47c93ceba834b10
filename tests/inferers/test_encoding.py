from __future__ import annotations

import pytest
import torch

from monai_ext.inferers.encoding import encode_slice


@torch.no_grad()
@pytest.mark.parametrize("frame", [None, (40, 64)])
def test_a_slice_that_fills_its_frame_is_encoded_as_it_is(tiny_network, frame):
    network, image = tiny_network(0), torch.rand(1, 40, 64) * 255
    embeddings, alone = encode_slice(network, image, frame), network.encode(image[None])
    assert torch.equal(embeddings.features, alone.features)
    assert embeddings.size == (40, 64)


@torch.no_grad()
def test_a_smaller_slice_lies_in_the_corner_of_a_black_frame(tiny_network):
    network, image = tiny_network(0), torch.rand(1, 20, 30) * 255
    whole = torch.zeros(1, 1, 40, 64)
    whole[0, :, :20, :30] = image
    embeddings = encode_slice(network, image, (40, 64))
    assert torch.equal(embeddings.features, network.encode(whole).features)
    assert embeddings.size == (20, 30)
