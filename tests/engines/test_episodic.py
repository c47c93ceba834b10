"""Tests of monai_ext.engines.episodic with a network of one convolution."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from few_shot_cases import SIDE, few_shot_cases
from monai_ext.data.episode_lists import draw_episodes
from monai_ext.data.episodes import EpisodeDataset, EpisodePool, EpisodeSampler
from monai_ext.data.superpixels import Superpixels, store_superpixels
from monai_ext.engines.episodic import (
    EpisodicIteration,
    EpisodicSelection,
    EpisodicValidation,
    check_selection,
    count_epochs,
    parameter_groups,
)
from monai_ext.errors import UserError
from monai_ext.handlers.training import EpochDraws, ResumeTraining
from monai_ext.metrics.episodes import EpisodeCounts
from monai_ext.transforms.augment import BatchAugment

CUT = Superpixels(smallest=0.03, largest=0.5)
CLASSES = ["liver", "kidney"]


class Toy(nn.Module):
    """Scores pixels by how near their grey value, seen through a convolution, is to the support's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, batch: dict[str, Any]) -> Tensor:
        support, query = (self.trunk(batch[f"{role}_image"] / 255) for role in ("support", "query"))
        mask = batch["support_mask"][:, None]
        mean = (support * mask).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True)
        return self.scale * (0.1 - (query - mean).square().sum(1))


def step(network: Toy, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    noise = torch.randn((), generator=generator) + torch.randn(())
    loss = nn.functional.binary_cross_entropy_with_logits(network(batch), batch["query_mask"])
    return {"loss": loss + 0.01 * noise * network.scale, "noise": noise}


def predict(network: Toy, batch: dict[str, Any]) -> Tensor:
    assert not {"query_mask", "query_valid"} & set(batch)
    return network(batch)


@pytest.fixture
def cases(tmp_path):
    cases = few_shot_cases(tmp_path)
    store_superpixels(cases, CUT)
    return cases


def evaluator(cases, network: nn.Module, count: int = 4) -> SupervisedEvaluator:
    pool = EpisodePool(cases, CLASSES, superpixels=CUT.name)
    episodes = draw_episodes(pool, count, superpixels=2)
    dataset = EpisodeDataset(cases, SIDE, CLASSES, CUT.name, episodes=episodes)
    validation = EpisodicValidation(predict, episodes)
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=None),
        network=network,
        iteration_update=validation,
        decollate=False,
        val_handlers=[validation],
    )


def train(cases, folder: Path, epochs: int = 3, stop_after: int | None = None, seed: int = 0) -> Toy:
    """Train, or begin to and stop after some epochs as if killed; go on with what lies in the folder."""
    torch.manual_seed(5)
    network = Toy()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    pool = EpisodePool(cases, CLASSES, superpixels=CUT.name)
    sampler = EpisodeSampler(pool, 4, "mixed", two_class=True)
    dataset = EpisodeDataset(cases, SIDE, CLASSES, CUT.name, BatchAugment(rotation=10.0, elastic=3.0))
    selection = EpisodicSelection(evaluator(cases, network), network, folder)
    states = {"network": network, "optimizer": optimizer, "selection": selection}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(dataset, sampler=sampler, batch_size=None),
        network=network,
        optimizer=optimizer,
        loss_function=step,
        iteration_update=EpisodicIteration(step, clip=1.0, seed=seed),
        decollate=False,
        train_handlers=[EpochDraws(sampler), selection, ResumeTraining(folder, states)],
    )
    if stop_after is not None:

        def stop(engine: Any) -> None:
            if engine.state.epoch > stop_after:
                raise KeyboardInterrupt

        trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    trainer.run()
    return network


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(cases, tmp_path) -> None:
    whole = train(cases, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(cases, tmp_path / "stopped", stop_after=1)
    resumed = train(cases, tmp_path / "stopped")
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    tables = [(tmp_path / name / "validation.csv").read_bytes() for name in ("whole", "stopped")]
    assert tables[0] == tables[1]
    other_noise = train(cases, tmp_path / "other", seed=1)
    assert not torch.equal(whole.trunk.weight, other_noise.trunk.weight)


def test_the_best_weights_stay(cases, tmp_path, monkeypatch) -> None:
    found = iter([0.2, 0.9, 0.5])
    seen = []

    def finish(self: EpisodicValidation, engine: Any) -> None:
        engine.state.metrics.update({"val_mean": next(found)})
        seen.append({k: v.clone() for k, v in engine.network.state_dict().items()})

    monkeypatch.setattr(EpisodicValidation, "_finish", finish)
    network = train(cases, tmp_path)
    assert torch.equal(network.trunk.weight, seen[1]["trunk.weight"])
    assert not torch.equal(network.trunk.weight, seen[2]["trunk.weight"])
    with open(tmp_path / "validation.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["val_mean"] for line in lines] == ["0.2", "0.9", "0.5"]
    assert [line["iteration"] for line in lines] == ["4", "8", "12"]


def test_a_metric_of_which_the_episodes_tell_nothing_is_refused_before_the_training(cases, capsys) -> None:
    pool = EpisodePool(cases, CLASSES, superpixels=CUT.name)
    classes, superpixels = draw_episodes(pool, 2), draw_episodes(pool, 0, superpixels=2)
    for metric in (None, "val_mean", "val_dice", "val_superpixel_dice"):
        check_selection(metric, classes + superpixels)
    for metric, episodes in (("val_dice", superpixels), ("val_miou", superpixels), ("val_superpixel_dice", classes)):
        with pytest.raises(UserError, match=f"--select {metric}: the validation has no such episodes"):
            check_selection(metric, episodes)
    assert not capsys.readouterr().err
    check_selection("val_mean", [])
    assert "no patient validates" in capsys.readouterr().err


def test_an_interval_is_1_or_more(cases, tmp_path) -> None:
    network = Toy()
    with pytest.raises(UserError, match="--val_interval is 0"):
        EpisodicSelection(evaluator(cases, network), network, tmp_path, interval=0)


def test_validation_counts_episode_by_episode(cases) -> None:
    network = Toy()
    engine = evaluator(cases, network)
    engine.run()
    dataset = engine.data_loader.dataset
    counts, superpixels = EpisodeCounts(), []
    for number, episode in enumerate(dataset.episodes):
        batch = dataset[number]
        with torch.no_grad():
            prediction = network(batch) > 0
        truth = batch["query_mask"].bool()
        if episode.is_superpixel:
            superpixels.append(float(2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())))
        else:
            counts.add(episode.name, (episode.query.dataset, episode.query.case), prediction, truth)
    metrics = engine.state.metrics
    assert metrics["val_dice"] == pytest.approx(counts.mean_dice())
    assert metrics["val_miou"] == pytest.approx(counts.mean_iou())
    assert metrics["val_fb_iou"] == pytest.approx(counts.fb_iou())
    assert metrics["val_superpixel_dice"] == pytest.approx(sum(superpixels) / 2)
    assert metrics["val_mean"] == pytest.approx((counts.mean_dice() + sum(superpixels) / 2) / 2)
    engine.run()
    assert engine.state.metrics == metrics


def test_the_trunk_learns_at_a_rate_of_its_own() -> None:
    network = nn.Module()
    network.trunk = nn.Module()
    network.trunk.stages, network.trunk.reduce, network.head = nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 1)
    rest, trunk = parameter_groups(network, 0.1, 0.01)
    assert (rest["lr"], trunk["lr"]) == (0.1, 0.01)
    assert [id(p) for p in trunk["params"]] == [id(p) for p in network.trunk.stages.parameters()]
    others = [*network.trunk.reduce.parameters(), *network.head.parameters()]
    assert {id(p) for p in rest["params"]} == {id(p) for p in others}
    (alone,) = parameter_groups(network, 0.1, 0.0)
    assert len(alone["params"]) == 4
    assert not any(p.requires_grad for p in network.trunk.stages.parameters())


def test_a_gradient_norm_must_be_above_0() -> None:
    with pytest.raises(UserError, match="--clip is 0"):
        EpisodicIteration(step, clip=0)


@pytest.mark.parametrize(("steps", "length", "epochs"), [(10, 5, 2), (11, 5, 3), (1, 5, 1)])
def test_epochs(steps, length, epochs) -> None:
    assert count_epochs(steps, length) == epochs
