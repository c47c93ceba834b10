"""Tests of monai_ext.engines.apscl: Eq. 13."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from monai_ext.engines.apscl import ApsclObjective, segment_queries
from monai_ext.errors import UserError
from monai_ext.networks.prototype_net import PrototypeNet, build_prototype_net

TERMS = {"loss", "ce", "kl", "scl", "variance_mu_y", "active_units"}


@pytest.fixture(scope="module")
def network() -> PrototypeNet:
    torch.manual_seed(0)
    sizes = {"latent": 4, "hidden": (8, 8), "prior_pool": 2, "sim_width": 8, "mgd_width": 8}
    return build_prototype_net(image_size=64, channels=8, auxiliary=True, options=sizes).train()


def step(seed: int = 0, supervised: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 2, 1, 64, 64, generator=generator) * 255
    masks = torch.zeros(2, 2, 64, 64)
    masks[0, 0, 8:40, 8:40] = masks[0, 1, 20:50, 8:40] = masks[1, 0, 16:44, 4:30] = masks[1, 1, 5:20, 10:60] = 1
    return {
        "support_image": images[0],
        "query_image": images[1],
        "support_mask": masks[0],
        "query_mask": masks[1],
        "classes": [1, 2],
        "supervised": [supervised, supervised],
    }


def one(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:1] for name, value in batch.items()}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_the_sum_of_equation_13(network: PrototypeNet) -> None:
    objective = ApsclObjective()
    terms = objective(network, step(), generator())
    assert set(terms) == TERMS
    expected = terms["ce"] + 0.1 * terms["kl"] + 0.07 * terms["scl"]
    torch.testing.assert_close(terms["loss"].detach(), expected)
    assert objective.needs_two_classes


def test_the_terms_are_those_of_the_episode(network: PrototypeNet) -> None:
    objective, batch = ApsclObjective(ce_weight=[0.05, 1]), step()
    terms = objective(network, batch, generator())
    with torch.no_grad():
        images = (batch[name] for name in ("support_image", "support_mask", "query_image", "query_mask"))
        episode = network.run_episodes(*images, generator=generator())
        logits = network.to_image(episode.scores[:1], (64, 64))
        target = batch["query_mask"][:1].long()
        torch.testing.assert_close(terms["ce"], F.cross_entropy(logits, target, torch.tensor([0.05, 1])))
        parts = [b[:1] for b in (episode.supports, episode.queries)]
        torch.testing.assert_close(terms["kl"], sum(objective.consistency(p.prior, p.posterior) for p in parts))
        relevance = network.relevance(*network.project(episode))
        torch.testing.assert_close(terms["scl"], objective.contrast(relevance, [1, 2, 1, 2]))


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({"lambda_kl": 0}, {"loss", "ce", "scl"}),
        ({"lambda_scl": 0}, TERMS - {"scl"}),
        ({"lambda_kl": 0, "lambda_scl": 0, "lambda_align": 1}, {"loss", "ce", "align"}),
    ],
)
def test_terms_can_be_switched_off(network: PrototypeNet, options: dict[str, float], terms: set[str]) -> None:
    objective = ApsclObjective(**options)
    given = objective(network, step() if objective.needs_two_classes else one(step()), generator())
    assert set(given) == terms


def test_superpixels_have_no_divergence(network: PrototypeNet) -> None:
    assert "kl" not in ApsclObjective()(network, step(supervised=False), generator())
    assert "kl" in ApsclObjective(superpixel_kl=True)(network, step(supervised=False), generator())


def test_steps_of_one_class_meet_earlier_ones_in_the_queue(network: PrototypeNet) -> None:
    objective = ApsclObjective(scl_pool="queue", queue_size=3)
    assert not objective.needs_two_classes
    first = objective(network, one(step()), generator())
    assert float(first["scl"]) == pytest.approx(0, abs=1e-5)  # nothing to compare the pair with yet
    second = {name: value[1:] for name, value in step(1).items()}
    terms = objective(network, second, generator())
    assert float(terms["scl"]) > 0.01
    assert objective.queue.classes == [2, 2, 1]


def test_the_objective_goes_on(network: PrototypeNet) -> None:
    first, second = (ApsclObjective(scl_pool="queue") for _ in range(2))
    first(network, one(step()), generator())
    second.load_state_dict(first.state_dict())
    terms = [o(network, one(step(1)), generator()) for o in (first, second)]
    assert terms[0].keys() == terms[1].keys()
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])


@pytest.mark.slow
def test_a_few_steps_learn_an_episode() -> None:
    torch.manual_seed(0)
    network = build_prototype_net(
        image_size=64, channels=8, auxiliary=True, options={"hidden": (8, 8), "prior_pool": 2}
    ).train()
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    objective, batch = ApsclObjective(), step()
    losses = []
    for _ in range(12):
        terms = objective(network, batch, generator())
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        losses.append(float(terms["ce"]))
    assert min(losses[-3:]) < 0.9 * losses[0]


def test_only_known_pixels_count(network: PrototypeNet) -> None:
    objective = ApsclObjective(lambda_kl=0, lambda_scl=0)
    batch = one(step())
    known = torch.ones(1, 64, 64, dtype=torch.bool)
    known[:, :, 32:] = False
    first = {**batch, "query_valid": known}
    other = {**first, "query_mask": batch["query_mask"].where(known, 1 - batch["query_mask"])}
    terms = [objective(network, b, generator())["ce"] for b in (batch, first, other)]
    assert torch.equal(terms[1], terms[2])
    assert not torch.equal(terms[0], terms[1])


def test_prediction_reads_no_mask_of_the_query(network: PrototypeNet) -> None:
    batch = step()
    poisoned = {**batch, "query_mask": None, "query_valid": None}
    network.eval()
    with torch.no_grad():
        logits = [segment_queries(network, b) for b in (batch, poisoned)]
    network.train()
    assert logits[0].shape == (2, 64, 64)
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("given", [[1.0], [1.0, 1.0, 1.0], [0.0, 1.0], 1.0, "even", [1.0, float("nan")]])
def test_weights_of_the_classes_that_are_none(given) -> None:
    with pytest.raises(UserError, match=r"--ce_weight is .*: give two numbers above 0, of background and structure"):
        ApsclObjective(ce_weight=given)
