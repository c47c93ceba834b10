"""Studies on frozen episodes: their mechanics, on a tiny network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from few_shot_cases import ORGANS, few_shot_cases
from monai_ext.data.episodes import Episode, EpisodeDataset, SliceName
from monai_ext.engines import prosam_studies as studies
from monai_ext.errors import UserError
from monai_ext.networks.prompt_distribution import PromptDistributionNet
from monai_ext.networks.reference_encoder import EncoderReference
from monai_ext.networks.sam import build_compact
from monai_ext.prompts.distribution import Sampler

EPISODES = [
    Episode("kidney", SliceName("Toy", "b", 7), SliceName("Toy", "a", 2)),
    Episode("liver", SliceName("Toy", "b", 5), SliceName("Toy", "c", 0)),
]


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    network = build_compact(image_size=32, stride=8, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=32).eval()
    network.requires_grad_(False)
    for mlp in network.mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight *= 30  # masks that the prompts can change
    return network


@pytest.fixture
def make_net(sam):
    def make(sampler: str = "gaussian"):
        torch.manual_seed(1)
        reference = EncoderReference(sam, 32)
        return PromptDistributionNet(reference, 32, prompts=4, hidden=32, sampler=Sampler(sampler)).eval()

    return make


@pytest.fixture
def episodes(sam, tmp_path):
    """Two queries."""
    dataset = EpisodeDataset(few_shot_cases(tmp_path), 32, ORGANS, episodes=EPISODES)
    return studies.StudyEpisodes(sam, dataset, tmp_path / "features")


def plain_ious(sam, net, episodes):
    """IoU of each episode's mean prompt, one step after the other."""
    values = []
    for _, _, batch in episodes.batches("plain"):
        with torch.no_grad():
            query, support = (net.features(batch[f"{role}_image"], 32) for role in ("query", "support"))
            mean = net(query, support, net.masks(batch["support_mask"], 32)).mean
            low, _ = sam.decode_tokens(sam.encode(batch["query_image"]), mean)
            found = sam.to_image(low, (32, 32))[0, 0] > 0
        truth = batch["query_mask"][0] > 0
        values.append(float((found & truth).sum() / (found | truth).sum()))
    return values


def test_no_noise_leaves_the_mask_and_both_panels_begin_alike(sam, make_net, episodes):
    net = make_net()
    rows = studies.noise_study(episodes, {"a": net}, [0.0, 5.0], [0.0, 5.0])
    assert len(rows) == 2 * 4
    expected = plain_ious(sam, net, episodes)
    for panel in studies.NOISES:
        still = [row["value"] for row in rows if row["panel"] == panel and row["x"] == 0]
        assert still == pytest.approx(expected, abs=0.02)
        assert [row["value"] for row in rows if row["panel"] == panel and row["x"] == 5] != still
    assert [(row["class"], row["patient"]) for row in rows[::4]] == [("kidney", "a"), ("liver", "c")]


def test_relative_noise_is_in_units_of_the_prompts_size(make_net, episodes, monkeypatch):
    net, decoded = make_net(), []
    with torch.no_grad():
        net.to_mean.weight *= 7
    decode = studies.ProsamObjective.decode
    monkeypatch.setattr(studies.ProsamObjective, "decode", lambda s, e, t: decoded.append(t) or decode(s, e, t))
    studies.noise_study(episodes, {"a": net}, [0.0, 2.0], [2.0])
    together = [tokens[:, 0] for tokens in decoded if len(tokens) > 1]  # each is decoded by itself afterwards
    assert len(together) == len(EPISODES)
    for still, absolute, relative in together:
        rms = float(still.square().mean().sqrt())
        assert rms > 2
        torch.testing.assert_close(relative - still, (absolute - still) * rms, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="--absolute_noise"):
        studies.noise_study(episodes, {"a": net}, [-1.0], [])


def test_kinds_of_annotation_are_those_asked_for(sam, make_net, episodes):
    net = make_net()
    rows = studies.annotation_study(episodes, {"a": net}, ["mask", "points"])
    assert [row["x"] for row in rows] == ["mask", "mask", "points", "points"]
    assert [row["value"] for row in rows[:2]] == pytest.approx(plain_ious(sam, net, episodes), abs=0.02)
    with pytest.raises(UserError, match="annotation 'text'"):
        studies.annotation_study(episodes, {"a": net}, ["text"])


def test_strategies_need_a_distribution(sam, make_net, episodes):
    rows = studies.strategy_study(episodes, {"a": make_net()}, 3)
    assert len(rows) == 2 * 6
    mean = [row["value"] for row in rows if row["x"] == "mean_prompt"]
    assert mean == pytest.approx(plain_ious(sam, make_net(), episodes), abs=0.02)
    with pytest.raises(UserError, match="no distribution"):
        studies.strategy_study(episodes, {"a": make_net("none")}, 3)


def test_the_innermost_pixel_of_a_mask():
    mask = torch.zeros(12, 20)
    mask[2:9, 5:12] = 1
    mask[4:6, 12:19] = 1
    assert studies.innermost(mask) == (8, 5)
    full = torch.ones(5, 5)
    assert studies.innermost(full) == (2, 2), "the image's border is a border"


def test_prompts_at_the_centre_are_as_near_as_can_be(sam, make_net, episodes):
    net = make_net()
    point = studies.embed_point(sam, studies.innermost(episodes.dataset[0]["query_mask"][0]))
    with torch.no_grad():
        net.to_mean.weight.zero_()
        net.to_mean.bias.copy_(3 * point[0])
    first, second = studies.centre_study(episodes, {"a": net})
    assert first["x"] == pytest.approx(1, abs=1e-5)
    assert second["x"] < 0.999


@pytest.mark.slow
def test_descent_finds_better_prompts_and_one_does_not_disturb_another(episodes):
    before = studies.descent_study(episodes, studies.Descent(steps=1, learning_rate=0.0), 2, 1.0, 2)
    after = studies.descent_study(episodes, studies.Descent(steps=15, learning_rate=0.1), 2, 1.0, 2)
    for series in ("deterministic", "variational"):
        losses = [
            np.mean([row["value"] for row in rows if (row["panel"], row["series"]) == ("BCE", series)])
            for rows in (before, after)
        ]
        assert losses[1] < losses[0]
    alone = studies.descent_study(episodes, studies.Descent(steps=15, learning_rate=0.1), 1, 1.0, 2)
    first = [rows[0]["value"] for rows in (alone, after)]
    assert first[0] == pytest.approx(first[1], abs=0.1)


def test_a_prompt_that_no_longer_improves_stays():
    place = torch.tensor([[0.0], [5.0]])
    asked = []

    def losses(step):
        asked.append(place.detach().clone())
        return torch.stack([place[0, 0] * 0 + 1, place[1, 0] ** 2])

    studies.Descent(steps=50, learning_rate=0.1, patience=3, tolerance=1e-3)([place], losses)
    assert float(place[0, 0].detach()) == 0
    assert float(place[1, 0].detach()) < 2
    place2 = torch.tensor([[1.0]])
    calls = []
    studies.Descent(steps=50, patience=3)([place2], lambda step: calls.append(step) or place2[:, 0] * 0)
    assert len(calls) == 5, "the first step counts as a fall"
