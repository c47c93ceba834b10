"""VRP-SAM's layout and ProSAM's heads: counts, steps against slow versions, what stays frozen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from monai_ext.errors import UserError
from monai_ext.losses.sampled_masks import SampledMaskLoss
from monai_ext.networks.backbone import Embeddings
from monai_ext.networks.prompt_attention import AttentionBlock, PromptTransformer, sine_positions
from monai_ext.networks.prompt_distribution import PromptDistributionNet, join_shots
from monai_ext.networks.reference_encoder import (
    EncoderReference,
    ReferenceEncoder,
    ReferenceFeatures,
    TrunkReference,
    build_reference,
)
from monai_ext.networks.sam import build_compact
from monai_ext.networks.trunk import build_trunk
from monai_ext.prompts.distribution import Sampler

NONE = Sampler("none")
TINY = {"image_size": 64, "channels": (16, 16, 32, 32), "blocks": (1, 1, 1), "width": 32}


class Stub(nn.Module):
    """A reference encoder of VRP-SAM's sizes, without weights."""

    image_size, grid, deep_grid, middle_channels = 512, 64, 64, 1536


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.fixture
def sam():
    torch.manual_seed(0)
    return build_compact(**TINY).eval().requires_grad_(False)


@pytest.fixture
def net(sam):
    torch.manual_seed(1)
    return PromptDistributionNet(EncoderReference(sam, 32), channels=32, prompts=5, hidden=16).eval()


@pytest.fixture
def pair():
    torch.manual_seed(2)
    mask = torch.zeros(2, 40, 64, dtype=torch.bool)
    mask[:, 10:30, 20:44] = True
    return 255 * torch.rand(2, 1, 40, 64), 255 * torch.rand(2, 1, 40, 64), mask


def predict(net, pair):
    image, reference, mask = pair
    return net(net.features(image, 64), net.features(reference, 64), net.masks(mask, 64))


# ---- T1: parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"sampler": NONE}, 1_592_064),  # VRP-SAM, as its code prints it
        ({}, 1_723_648),  # the paper says 1.73 M
        ({"sampler": NONE, "two_linear": True}, 1_723_648),  # Table 9
        ({"fixed_sigma": 1.0}, 1_592_064 + 65_792),
        ({"channels": 128}, 1_592_064 + 2 * (256 * 128 + 128)),  # the compact SAM
        ({"channels": 128, "sampler": NONE}, 501_120),
        ({"channels": 128, "hidden": 128}, 501_120 + 2 * (128 * 128 + 128)),
    ],
)
def test_number_of_learned_parameters(options, parameters):
    assert count(PromptDistributionNet(Stub(), **options)) == parameters


def test_the_numbers_of_the_compact_width():
    assert count(PromptDistributionNet(Stub(), channels=128)) == 1_657_856
    vrp = 1536 * 128 + 257 * 128 + 50 * 128 + 4 * (4 * 128**2 + 4 * 128 + 2 * 128)
    assert vrp == 501_120


# ---- reference encoders ----------------------------------------------------------------------------------------------


def test_a_dilated_resnet_gives_what_vrp_sam_takes():
    reference = build_reference("resnet50", None, 256, weights=None, image_size=64)
    assert isinstance(reference, ReferenceEncoder)
    assert (reference.middle_channels, reference.grid, reference.deep_grid) == (1536, 8, 8)
    features = reference.features(torch.rand(1, 1, 128, 100) * 255, 128)
    assert features.middle.shape == (1, 1536, 8, 8)
    assert features.deep.shape == (1, 1024, 8, 8)
    assert reference.last_stage(features.deep).shape == (1, 2048, 8, 8)
    assert sum(p.numel() for p in reference.parameters()) == 23_508_032
    assert count(reference) == 0


def test_a_network_of_timm_is_resampled_to_stride_8():
    reference = TrunkReference(build_trunk("tf_efficientnet_lite0", None, 64, channels=None))
    features = reference.features(torch.rand(2, 3, 64, 48) * 255, 64)
    assert features.middle.shape == (2, reference.middle_channels, 8, 8)
    assert features.deep.shape[-1] == reference.deep_grid == 4
    assert reference.last_stage(features.deep).shape[-2:] == (8, 8)
    assert features[1:].middle.shape[0] == 1


def test_the_reference_encoder_stays_as_it_is_while_the_prompts_train():
    reference = TrunkReference(build_trunk("tf_efficientnet_lite0", None, 64, channels=None))
    net = PromptDistributionNet(reference, channels=32, hidden=16, prompts=4)
    net.train()
    assert not any(module.training for module in reference.modules())
    assert {id(p) for p in net.trained_parameters()}.isdisjoint(id(p) for p in reference.parameters())
    before = {k: v.clone() for k, v in reference.state_dict().items()}
    reference.features(torch.rand(2, 1, 64, 64) * 255, 64)
    assert all(torch.equal(v, before[k]) for k, v in reference.state_dict().items())


def test_sam_as_reference_encoder_brings_no_weights(net, sam):
    assert isinstance(net.reference, ReferenceEncoder)
    assert not [name for name in net.state_dict() if name.startswith("reference")]
    images = 255 * torch.rand(1, 1, 64, 64)
    assert torch.equal(net.features(images, 64).middle, sam.encode(images).features)


def test_images_of_another_square_are_resampled(net):
    image = torch.full((1, 1, 96, 128), 100.0)
    small = net.features(image, 128).middle
    torch.testing.assert_close(small, net.features(torch.full((1, 1, 48, 64), 100.0), 64).middle)


# ---- the steps -------------------------------------------------------------------------------------------------------


def test_positions_same_as_the_slow_version():
    rows, columns, channels = 3, 5, 8
    fast = sine_positions(rows, columns, channels)
    for r in range(rows):
        for c in range(columns):
            expected = []
            for place, cells in ((r, rows), (c, columns)):
                for k in range(channels // 2):
                    angle = 2 * math.pi * (place + 1) / cells / 10000 ** (2 * (k // 2) / (channels // 2))
                    expected.append(math.cos(angle) if k % 2 else math.sin(angle))
            assert fast[r * columns + c].tolist() == pytest.approx(expected, abs=1e-5)


def test_attention_same_as_the_slow_version():
    torch.manual_seed(0)
    block = AttentionBlock(8, 4).double()
    queries, values, positions = (torch.randn(n, 8, dtype=torch.double) for n in (3, 6, 6))
    of_q, of_k, of_v = block.attention.in_proj_weight.chunk(3)
    q, k, v = queries @ of_q.T, (values + positions) @ of_k.T, values @ of_v.T
    read = torch.zeros_like(queries)
    for head in range(4):
        part = slice(2 * head, 2 * head + 2)
        for i in range(3):
            scores = torch.stack([q[i, part] @ k[j, part] / math.sqrt(2) for j in range(6)])
            weights = scores.exp() / scores.exp().sum()
            read[i, part] = sum(weights[j] * v[j, part] for j in range(6))
    out = queries + block.attention.out_proj(read)
    expected = (out - out.mean(-1, keepdim=True)) / (out.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block(queries[None], values[None], positions)[0], expected)


def test_queries_ask_the_reference_first(monkeypatch):
    transformer, asked = PromptTransformer(8, 3, 4), []
    for name in ("from_support", "among_support_queries", "from_query", "among_query_queries"):
        block = getattr(transformer, name)
        block.register_forward_hook(lambda module, given, result, name=name: asked.append((name, len(given))))
    transformer(torch.rand(2, 8, 4, 4), torch.rand(2, 8, 4, 4))
    assert asked == [("from_support", 3), ("among_support_queries", 2), ("from_query", 3), ("among_query_queries", 2)]


def test_vrp_prompts_have_length_one_a_number():
    transformer = PromptTransformer(256, 50, 4)
    tokens = transformer(torch.rand(1, 256, 8, 8), torch.rand(1, 256, 8, 8))
    assert tokens.shape == (1, 50, 256)
    assert float(tokens.detach().square().mean().sqrt()) == pytest.approx(1, abs=1e-3)


def test_merging_same_as_the_slow_version(net, pair):
    image, reference, mask = pair
    query, support, masks = net.features(image, 64), net.features(reference, 64), net.masks(mask, 64)
    of_support, of_query = net.enhance(query, support, masks)
    prior = net.prior(query, support, *masks)
    weight, merge = net.reduce[0].weight[:, :, 0, 0], net.merge[0].weight[:, :, 0, 0]
    for b in range(2):
        q, s = ((weight @ f.middle[b].flatten(1)).clamp(min=0) for f in (query, support))
        m = masks[0][b].flatten()
        prototype = (s * m).sum(1) / (m.sum() + 0.0005)
        for features, extra, result in ((s, m, of_support[b]), (q, prior[b].flatten(), of_query[b])):
            for cell in range(64):
                column = torch.cat([features[:, cell], prototype, 10 * extra[cell : cell + 1]])
                expected = (merge @ column).clamp(min=0)
                torch.testing.assert_close(result.flatten(1)[:, cell], expected, rtol=1e-4, atol=1e-4)


def test_the_background_goes_before_the_last_stage():
    class Blurring(nn.Module):
        image_size, grid, deep_grid, middle_channels = 64, 8, 8, 4

        def last_stage(self, deep):
            return nn.functional.avg_pool2d(deep, 3, 1, 1)

    net = PromptDistributionNet(Blurring(), channels=32, hidden=16)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 2:5] = 1
    support = torch.rand(1, 4, 8, 8)
    changed = support + torch.rand(1, 4, 8, 8) * (1 - mask)  # another background
    query = ReferenceFeatures(torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 8))
    one, other = (net.prior(query, ReferenceFeatures(s, s), mask, mask) for s in (support, changed))
    assert torch.equal(one, other)


# ---- distributions ---------------------------------------------------------------------------------------------------


def test_shapes_and_positive_sigmas(net, pair):
    prompts = predict(net, pair)
    assert prompts.mean.shape == prompts.std.shape == (2, 5, 32)
    assert bool((prompts.std > 0).all())


def test_sigma_is_the_exponential_of_the_second_layer(net):
    tokens = torch.randn(1, 5, 16)
    torch.testing.assert_close(net.to_distribution(tokens).std, net.to_log_std(tokens).exp())


def test_sigma_can_be_bounded_or_fixed(sam, pair):
    reference = EncoderReference(sam, 32)
    bounded = PromptDistributionNet(reference, channels=32, hidden=16, sigma_min=5.0).eval()
    assert float(predict(bounded, pair).std.min()) == 5
    fixed = PromptDistributionNet(reference, channels=32, hidden=16, fixed_sigma=0.5).eval()
    assert predict(fixed, pair).std.unique().tolist() == [0.5]


def test_vrp_has_no_sigma(sam, pair):
    vrp = PromptDistributionNet(EncoderReference(sam, 32), channels=32, sampler=NONE).eval()
    prompts = predict(vrp, pair)
    assert prompts.std is None
    assert vrp.effective_std(prompts).tolist() == [0, 0]


def test_effective_sigma_is_that_of_the_draws(net, pair):
    prompts = predict(net, pair)
    draws = net.sampler.draw(prompts, 4000, torch.Generator().manual_seed(0))
    measured = (draws - prompts.mean).square().mean(dim=(0, 2, 3)).sqrt()
    torch.testing.assert_close(net.effective_std(prompts), measured, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"two_linear": True}, "--two_linear true is a control"),
        ({"sampler": NONE, "hidden": 64}, "no layer from 64 to SAM's 256"),
        ({"sampler": NONE, "fixed_sigma": 1.0}, "--fixed_sigma has no effect"),
        ({"sigma_min": -1.0}, "--sigma_min and --fixed_sigma"),
        ({"hidden": 30}, "--hidden is 30"),
        ({"mask_downsample": "mode"}, "mask_downsample 'mode'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        PromptDistributionNet(Stub(), **options)


# ---- T5, T6, T10, T11: under SAM's decoder ---------------------------------------------------------------------------


def test_with_sigma_zero_and_one_draw_it_is_vrp_sam_bit_for_bit(sam, pair):
    """The same transformer, a mean layer that changes nothing: the loss is VRP-SAM's."""
    torch.manual_seed(3)
    vrp = PromptDistributionNet(EncoderReference(sam, 32), channels=32, sampler=NONE).eval()
    prosam = PromptDistributionNet(EncoderReference(sam, 32), channels=32, hidden=32, fixed_sigma=0.0).eval()
    prosam.load_state_dict(vrp.state_dict(), strict=False)
    prosam.to_mean = nn.Identity()
    target = sam.encode(pair[0])
    truth = torch.rand(2, 32, 32) > 0.5
    losses = []
    for net in (vrp, prosam):
        tokens = net.sampler.draw(predict(net, pair), 1)
        logits, _ = sam.decode_tokens(target, tokens[0])
        losses.append(SampledMaskLoss()(logits[None, :, 0], truth))
    assert torch.equal(*losses)


def test_prediction_is_deterministic_and_draws_nothing(net, pair):
    state = torch.get_rng_state()
    assert torch.equal(predict(net, pair).mean, predict(net, pair).mean)
    assert torch.equal(torch.get_rng_state(), state)


def test_sam_gets_sparse_tokens_and_its_no_mask_embedding(sam, monkeypatch):
    given = {}
    decode = sam.mask_decoder.forward
    monkeypatch.setattr(sam.mask_decoder, "forward", lambda **k: given.update(k) or decode(**k))
    tokens = torch.randn(1, 5, 32)
    sam.decode_tokens(sam.encode(torch.rand(1, 1, 64, 64)), tokens)
    assert torch.equal(given["sparse_prompt_embeddings"], tokens)
    no_mask = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    assert torch.equal(given["dense_prompt_embeddings"], no_mask.expand(1, -1, 8, 8))
    assert given["multimask_output"] is False


def test_the_order_of_the_prompts_does_not_matter(sam):
    embeddings = sam.encode(255 * torch.rand(1, 1, 64, 64))
    tokens = torch.randn(1, 9, 32)
    one, _ = sam.decode_tokens(embeddings, tokens)
    other, _ = sam.decode_tokens(embeddings, tokens[:, torch.randperm(9)])
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_draws_in_turn_and_at_once_have_the_same_gradient(sam, net, pair):
    target, truth = sam.encode(pair[0]), torch.rand(2, 32, 32) > 0.5
    loss, gradients = SampledMaskLoss(), []
    for chunks in (1, 3):
        net.zero_grad()
        tokens = net.sampler.draw(predict(net, pair), 3, torch.Generator().manual_seed(0))
        parts = tokens.chunk(chunks)
        for part in parts:
            features = target.features.repeat(len(part), 1, 1, 1)
            logits, _ = sam.decode_tokens(Embeddings(features, target.size), part.flatten(0, 1))
            value = loss(logits.reshape(len(part), 2, 32, 32), truth) / chunks
            value.backward(retain_graph=True)
        gradients.append([p.grad.clone() for p in net.trained_parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_several_references_are_put_behind_one_another(net, pair):
    prompts = predict(net, pair)
    joined = join_shots([prompts, prompts])
    assert joined.mean.shape == (2, 10, 32)
    assert torch.equal(joined.std[:, 5:], prompts.std)
