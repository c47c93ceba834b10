"""Tests of monai_ext.networks.prototype_net : Eqs. 11 and 12 against a slow reference, and episodes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.networks.backbone import Encoder
from monai_ext.networks.prototype_net import PrototypeNet, PrototypeOptions, build_prototype_net
from monai_ext.networks.trunk import Trunk, build_trunk
from monai_ext.networks.trunk_stages import LITE0

TINY = PrototypeOptions(latent=4, hidden=(8, 8), prior_pool=2, sim_width=8, mgd_width=8)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    torch.manual_seed(0)
    return build_trunk(LITE0, None, image_size=64, channels=8)


@pytest.fixture(scope="module")
def network(trunk: Trunk) -> PrototypeNet:
    torch.manual_seed(1)
    network = PrototypeNet(trunk, TINY).eval()
    for mlp in (network.enrichment.scale, network.enrichment.shift):
        nn.init.normal_(mlp[-1].weight, std=0.1)
    return network


def episodes(count: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, count, 1, 64, 56, generator=generator) * 255
    masks = torch.zeros(2, count, 64, 56)
    masks[0, :, 8:40, 8:40] = 1
    masks[1, :, 16:44, 4:30] = 1
    return images[0], masks[0], images[1], masks[1]


# ------------------------------------------------------------------------------------------------------- Eqs. 11-12


def slow_scores(query: Tensor, prototypes: list[Tensor], scale: float = 20.0) -> Tensor:
    scores = torch.empty(query.shape[1:])
    for y in range(query.shape[1]):
        for x in range(query.shape[2]):
            cosines = [float(F.cosine_similarity(query[:, y, x], p, dim=0)) * scale for p in prototypes]
            exps = [math.exp(c) for c in cosines]
            scores[y, x] = sum(e / sum(exps) * c for e, c in zip(exps, cosines, strict=True))
    return scores


def masked_mean(features: Tensor, weights: Tensor) -> Tensor:
    total = sum(features[:, y, x] * weights[y, x] for y, x in weights.nonzero().tolist())
    return total / weights.sum()


@pytest.mark.parametrize("supports", [1, 2])
def test_global_prototypes_against_a_slow_reference(trunk: Trunk, supports: int) -> None:
    network = PrototypeNet(trunk, replace(TINY, fem=False, mgd=False, scl=False))
    features, query = torch.randn(supports, 8, 8, 8), torch.randn(8, 8, 8)
    shares, valid = torch.rand(supports, 8, 8) * 0.7, torch.ones(8, 8)
    valid[:, 7] = 0.75
    support = network.make_support(features, shares, valid)
    structure = sum(masked_mean(f, s) for f, s in zip(features, shares, strict=True)) / supports
    rest = [masked_mean(f, (valid - s).clamp(min=0)) for f, s in zip(features, shares, strict=True)]
    scores = network.compare(query, support)
    torch.testing.assert_close(scores[1], slow_scores(query, [structure]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores[0], slow_scores(query, [sum(rest) / supports]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["local", "both"])
def test_local_prototypes_against_a_slow_reference(trunk: Trunk, kind: str) -> None:
    network = PrototypeNet(trunk, replace(TINY, fem=False, mgd=False, scl=False, prototypes=kind, window=2))
    features, query = torch.randn(1, 8, 8, 8), torch.randn(8, 8, 8)
    shares = torch.zeros(1, 8, 8)
    shares[0, 2:6, 2:5] = 1  # covers the windows at rows 2 and 4, column 2; half of those at column 4
    windows = {
        (y, x): features[0, :, y : y + 2, x : x + 2].mean(dim=(1, 2)) for y in range(0, 8, 2) for x in range(0, 8, 2)
    }
    structure = [windows[2, 2], windows[4, 2]]
    structure += [masked_mean(features[0], shares[0])] if kind == "both" else []
    rest = [p for place, p in windows.items() if place not in [(2, 2), (4, 2), (2, 4), (4, 4)]]
    support = network.make_support(features, shares, torch.ones(8, 8))
    scores = network.compare(query, support)
    torch.testing.assert_close(scores[1], slow_scores(query, structure), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores[0], slow_scores(query, rest), atol=1e-4, rtol=1e-4)


def test_a_class_without_a_window_has_its_global_prototype(trunk: Trunk) -> None:
    network = PrototypeNet(trunk, replace(TINY, fem=False, mgd=False, scl=False, prototypes="local"))
    features, shares = torch.randn(1, 8, 8, 8), torch.zeros(1, 8, 8)
    shares[0, 3:5, 3:5] = 1
    support = network.make_support(features, shares, torch.ones(8, 8))
    torch.testing.assert_close(support.foreground[0], masked_mean(features[0], shares[0]))
    torch.testing.assert_close(support.background[0], masked_mean(features[0], 1 - shares[0]))


def test_guided_prototypes_are_of_the_supports_embedding(network: PrototypeNet) -> None:
    features, query, shares = torch.randn(1, 8, 8, 8), torch.randn(8, 8, 8), torch.rand(1, 8, 8)
    support = network.make_support(features, shares, torch.ones(8, 8))
    z_support, z_query = network.guidance.support(features)[0], network.guidance.query(query[None])[0]
    torch.testing.assert_close(support.foreground[0], masked_mean(z_support, shares[0]), atol=1e-5, rtol=1e-5)
    expected = slow_scores(network.guidance(z_query, z_support), [support.foreground[0]])
    torch.testing.assert_close(network.compare(query, support)[1], expected, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- episodes


def test_it_is_an_encoder(network: PrototypeNet) -> None:
    assert isinstance(network, Encoder)


def test_an_image_is_embedded_as_in_the_square_of_an_episode(network: PrototypeNet) -> None:
    image = episodes(1)[0]
    with torch.no_grad():
        embeddings, square = network.encode(image), network.encode(F.pad(image, (0, 8)))
    assert (embeddings.size, square.size) == ((64, 56), (64, 64))
    torch.testing.assert_close(embeddings.features, square.features)
    with pytest.raises(ValueError, match="at most 64"):
        network.encode(torch.zeros(1, 1, 65, 8))


def test_an_episode_is_its_parts(network: PrototypeNet) -> None:
    support, support_mask, query, query_mask = episodes()
    with torch.no_grad():
        episode = network.run_episodes(support, support_mask, query, query_mask)
        assert episode.scores.shape == (2, 2, 8, 8)
        valid = network.valid_share((64, 56))
        assert valid.unique().tolist() == [0, 1]
        for k in range(2):
            f_support, f_query = (
                network.enrich(network.encode(x[k : k + 1]).features).features for x in (support, query)
            )
            made = network.make_support(f_support, network.shares(support_mask[k : k + 1]), valid)
            torch.testing.assert_close(episode.scores[k], network.compare(f_query[0], made), atol=1e-4, rtol=1e-4)


def test_masks_of_queries_change_no_score(network: PrototypeNet) -> None:
    support, support_mask, query, query_mask = episodes()
    with torch.no_grad():
        scores = [
            network.run_episodes(support, support_mask, query, m).scores for m in (query_mask, 1 - query_mask, None)
        ]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


def test_episodes_for_the_contrast_alone_bring_features(network: PrototypeNet) -> None:
    with torch.no_grad():
        whole, part = (network.run_episodes(*episodes(), segmented=count) for count in (None, 1))
        without = network.run_episodes(*episodes(), with_posteriors=False)
    for one, other in ((whole.supports, part.supports), (whole.queries, part.queries)):
        torch.testing.assert_close(other.features, one.features)
        torch.testing.assert_close(other.posterior.mean, one.posterior.mean[:1])
    assert torch.equal(part.scores, whole.scores[:1])
    assert without.supports.posterior is None
    assert torch.equal(without.scores, whole.scores)


def test_z_is_drawn_in_training_and_the_mean_otherwise(network: PrototypeNet) -> None:
    features = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            network.enrich(features).features, network.enrichment(features, network.prior(features).mean)
        )
        drawn = [network.enrich(features, sample=True, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
        network.train()
        trained = network.enrich(features, generator=torch.Generator().manual_seed(0))
        network.eval()
    assert torch.equal(drawn[0].features, drawn[1].features)
    assert not torch.equal(drawn[0].features, drawn[2].features)
    assert torch.equal(drawn[0].features, trained.features)


@pytest.mark.parametrize("source", ["prior", "posterior"])
def test_source_of_the_enrichment(trunk: Trunk, source: str) -> None:
    torch.manual_seed(3)
    network = PrototypeNet(trunk, replace(TINY, fem_source=source)).eval()
    nn.init.normal_(network.enrichment.shift[-1].weight)
    features, masks = torch.randn(1, 8, 8, 8), torch.zeros(1, 64, 64)
    masks[:, :32] = 1
    with torch.no_grad():
        with_mask, other = (network.enrich(features, network.encode_masks(m)) for m in (masks, 1 - masks))
        without = network.enrich(features)
    assert torch.equal(with_mask.features, other.features) == (source == "prior")
    torch.testing.assert_close(without.features, network.enrichment(features, network.prior(features).mean))
    assert without.posterior is None


def test_every_parameter_learns(trunk: Trunk) -> None:
    network = PrototypeNet(trunk, TINY).train()
    for mlp in (network.enrichment.scale, network.enrichment.shift):
        nn.init.normal_(mlp[-1].weight, std=0.1)  # at 0, as it starts, it hides the layers before
    episode = network.run_episodes(*episodes())
    projected, shares = network.project(episode)
    loss = (episode.scores * torch.randn_like(episode.scores)).sum()
    loss = loss + network.interaction.relevance(projected, shares).square().sum()
    loss = loss + sum(part.square().sum() for b in (episode.supports, episode.queries) for part in b.posterior)
    loss.backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    # the bias of the last layer of keys shifts all affinities of a place alike
    assert set(silent) <= {"interaction.keys.bias"}
    network.zero_grad(set_to_none=True)


def test_what_is_not_known_belongs_to_no_class(trunk: Trunk) -> None:
    network = PrototypeNet(trunk, replace(TINY, fem=False, mgd=False, scl=False)).eval()
    support, support_mask, query, _ = episodes(1)
    known = torch.ones(1, 64, 56)
    known[:, 40:] = 0
    with torch.no_grad():
        scores = network.run_episodes(support, support_mask, query, support_valid=known).scores[0]
        features = [network.encode(x).features for x in (support, query)]
        shares = network.shares(support_mask)
        rest = masked_mean(features[0][0, :, :5, :7], 1 - shares[0, :5, :7])
        torch.testing.assert_close(scores[0], slow_scores(features[1][0], [rest]), atol=1e-3, rtol=1e-3)


def test_alignment_swaps_support_and_query(trunk: Trunk) -> None:
    network = PrototypeNet(trunk, replace(TINY, fem=False, mgd=False, scl=False)).eval()
    with torch.no_grad():
        episode = network.run_episodes(*episodes())
        aligned = network.align(episode)
        for k in range(2):
            predicted = episode.scores[k].argmax(dim=0) * episode.query_valid[k]
            prototypes = [
                masked_mean(episode.queries.features[k], w) for w in (episode.query_valid[k] - predicted, predicted)
            ]
            expected = torch.stack([slow_scores(episode.supports.features[k], [p]) for p in prototypes])
            torch.testing.assert_close(aligned[k], expected, atol=1e-3, rtol=1e-3)


def test_alignment_of_a_query_without_structure(trunk: Trunk) -> None:
    network = PrototypeNet(trunk, replace(TINY, fem=False, mgd=False, scl=False)).eval()
    with torch.no_grad():
        episode = network.run_episodes(*episodes())
    nothing = torch.stack([torch.ones(2, 8, 8), torch.zeros(2, 8, 8)], dim=1)
    assert network.align(replace(episode, scores=nothing)) == [None, None]


def test_an_empty_support_is_refused(network: PrototypeNet) -> None:
    support, support_mask, query, _ = episodes()
    with pytest.raises(ValueError, match="episode 1 shows no structure"):
        network.run_episodes(support, support_mask * torch.tensor([1, 0]).view(2, 1, 1), query)


@pytest.mark.parametrize("switches", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_switches_of_the_ablation(trunk: Trunk, switches: tuple[int, int, int]) -> None:
    fem, scl, mgd = map(bool, switches)
    network = PrototypeNet(trunk, replace(TINY, fem=fem, scl=scl, mgd=mgd)).eval()
    built = {name.split(".")[0] for name in network.state_dict()} - {"trunk"}
    expected = {"prior", "enrichment", "posterior", "label_encoder"} if fem else set()
    assert built == expected | ({"interaction"} if scl else set()) | ({"guidance"} if mgd else set())
    with torch.no_grad():
        assert network.run_episodes(*episodes(1)).scores.shape == (1, 2, 8, 8)


def test_the_label_encoder_of_the_paper(trunk: Trunk) -> None:
    network = PrototypeNet(trunk, replace(TINY, label_encoder="trunk"))
    assert parameters(network.label_encoder) == parameters(trunk)
    assert network.label_encoder.trunk is not trunk
    with torch.no_grad():
        assert network.run_episodes(*episodes(1)).supports.posterior.mean.shape == (1, 4)


@pytest.mark.parametrize("mask_resize", ["bilinear", "area"])
def test_small_masks_are_not_lost(trunk: Trunk, mask_resize: str) -> None:
    network = PrototypeNet(trunk, replace(TINY, mask_resize=mask_resize))
    masks = torch.zeros(2, 64, 64)
    masks[0, 17, 9] = 1  # between the centres of all cells
    masks[1, 16:24, 8:16] = 1
    shares = network.shares(masks)
    assert float(shares[0, 2, 1]) == pytest.approx(1 / 64)
    assert shares[1].nonzero().tolist() == [[2, 1]]
    assert float(shares[1, 2, 1]) == 1


# --------------------------------------------------------------------------------------------------------- weights


def build(trunk: str = LITE0, auxiliary: bool = False, checkpoint: Path | None = None, **options: Any) -> PrototypeNet:
    tiny = {name: getattr(TINY, name) for name in ("latent", "hidden", "prior_pool", "sim_width", "mgd_width")}
    sizes = {"image_size": 64, "channels": 8, "options": {**tiny, **options}}
    return build_prototype_net(trunk, checkpoint=checkpoint, auxiliary=auxiliary, **sizes)


@pytest.mark.slow
def test_weights_of_a_training_serve_inference(tmp_path) -> None:
    trained = build(auxiliary=True)
    torch.save(trained.inference_state(), tmp_path / "model.pt")
    network = build(checkpoint=tmp_path / "model.pt")
    assert network.posterior is None
    assert network.interaction is None
    support, mask, query, _ = episodes(1)
    with torch.no_grad():
        scores = [net.run_episodes(support, mask, query).scores for net in (trained, network)]
    assert torch.equal(scores[0], scores[1])


@pytest.mark.slow
def test_weights_of_another_network(tmp_path) -> None:
    torch.save(build(mgd=False).state_dict(), tmp_path / "model.pt")
    with pytest.raises(
        UserError, match=r"model\.pt does not hold .* give --trunk and the network's options as trained"
    ):
        build(checkpoint=tmp_path / "model.pt")
    torch.save({"mask_decoder.iou_token.weight": torch.zeros(1)}, tmp_path / "sam.pt")
    with pytest.raises(UserError, match="those of a SAM"):
        build(checkpoint=tmp_path / "sam.pt")
    with pytest.raises(UserError, match=r"sam\.pt is of another network: they are those of a SAM"):
        build(trunk="compact", checkpoint=tmp_path / "sam.pt")  # as the record of a SAM's weights names it


@pytest.mark.slow
def test_weights_of_another_trunk(tmp_path) -> None:
    torch.save(build(trunk="resnet18").state_dict(), tmp_path / "model.pt")
    with pytest.raises(UserError, match="does not hold tf_efficientnet_lite0 weights"):
        build(checkpoint=tmp_path / "model.pt")


def test_unknown_options_are_named() -> None:
    with pytest.raises(UserError, match="option 'scl_pool' of the network is unknown"):
        build(scl_pool="queue")
    with pytest.raises(UserError, match="prototypes 'few' is unknown: choose one of global, local, both"):
        build(prototypes="few")
