from __future__ import annotations

import torch

from monai_ext.inferers.feature_cache import FeatureCache, FrozenFeatures
from monai_ext.networks.reference_encoder import EncoderReference, TrunkReference
from monai_ext.networks.trunk import build_trunk


def counting(calls: list) -> object:
    def make(image):
        calls.append(tuple(image.shape))
        return image.mean(dim=(2, 3)) / 7, 2 * image

    return make


def test_an_image_is_made_once(tmp_path):
    calls: list = []
    image = torch.randint(0, 256, (3, 8, 6)).float()
    first = FeatureCache(tmp_path, counting(calls), "a").of_image(image)
    again = FeatureCache(tmp_path, counting(calls), "a").of_image(image)
    assert calls == [(1, 3, 8, 6)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert torch.equal(first[0], (image[None].mean(dim=(2, 3)) / 7).half().float()), "through half precision"


def test_features_lie_in_memory_as_they_do_when_read_again(tmp_path):
    def make(image):  # an encoder whose features are channels last
        return (image.repeat(1, 4, 1, 1).contiguous(memory_format=torch.channels_last),)

    image = torch.randint(0, 256, (3, 8, 6)).float()
    first, again, unkept = (FeatureCache(folder, make, "a").of_image(image)[0] for folder in (tmp_path, tmp_path, None))
    assert first.stride() == again.stride() == unkept.stride() == torch.empty(1, 12, 8, 6).stride()


def test_another_image_or_network_is_made_anew(tmp_path):
    calls: list = []
    image = torch.randint(1, 256, (1, 8, 6)).float()
    for given, key in ((image, "a"), (image - 1, "a"), (image.reshape(1, 6, 8), "a"), (image, "b")):
        FeatureCache(tmp_path, counting(calls), key).of_image(given)
    assert len(calls) == len(list(tmp_path.iterdir())) == 4


def test_augmented_images_are_not_kept(tmp_path):
    calls: list = []
    cache = FeatureCache(tmp_path, counting(calls), "a")
    for image in (torch.rand(1, 4, 4), torch.full((1, 4, 4), 300.0)):
        cache.of_image(image)
        cache.of_image(image)
    assert len(calls) == 4
    assert not list(tmp_path.iterdir())


def test_frozen_features_are_those_of_the_networks(tmp_path, tiny_network):
    network = tiny_network(0)
    reference = TrunkReference(build_trunk("tf_efficientnet_lite0", None, 64, channels=None))
    images = torch.zeros(2, 3, 64, 64)
    images[:, :, :40] = torch.randint(0, 256, (2, 3, 40, 64)).float()
    sizes = [(40, 64), (64, 64)]
    for folder in (None, tmp_path, tmp_path):
        embedding, features = FrozenFeatures(network, reference, folder)(images, torch.tensor(sizes))
        for k, (h, w) in enumerate(sizes):
            crop = images[k : k + 1, :, :h, :w]
            with torch.no_grad():
                expected = network.encode(crop).features, *vars(reference.features(crop, 64)).values()
            for one, other in zip((embedding, features.middle, features.deep), expected, strict=True):
                torch.testing.assert_close(one[k : k + 1], other, rtol=2e-3, atol=2e-3)
    assert len(list(tmp_path.iterdir())) == 2


def test_one_map_serves_where_sam_is_the_reference_encoder(tmp_path, tiny_network):
    network = tiny_network(0)
    frozen = FrozenFeatures(network, EncoderReference(network, 32), tmp_path)
    embedding, features = frozen(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))
    assert features.middle is features.deep is embedding
