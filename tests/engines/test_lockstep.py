"""Processes that train together, played by threads with real gloo groups; the slow reference is one process alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine
from torch import Tensor, nn

from monai_ext.engines.interactive import InteractiveIteration, trained_parameters
from monai_ext.engines.lockstep import BarrierHandler, ProcessGroup, join
from monai_ext.losses.promptable import DenseClassLoss, PromptableLoss
from monai_ext.networks.sam import PromptableSam, build_compact
from monai_ext.transforms.augment import BatchAugment

SIZE = 64


def together(size: int, work: Callable[[ProcessGroup], Any]) -> list[Any]:
    """What ``work`` returns in each process."""
    store, results = dist.HashStore(), [None] * size
    failures: list[Exception] = []

    def run(rank: int) -> None:
        group = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=20))
        try:
            results[rank] = work(ProcessGroup(rank, size, group))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a process waits for ever"
    if failures:
        raise failures[0]
    return results


# ---- sums ------------------------------------------------------------------------------------------------------------


def test_totals_are_over_all_processes() -> None:
    assert together(3, lambda group: group.total([group.rank, 1.5])) == [[3.0, 4.5]] * 3


def test_gradients_are_added_and_stay_none_where_nobody_has_one() -> None:
    given: list[list[list[float] | None]] = [[[1, 2], None, None], [[10, 20], [3, 4], None]]

    def work(group: ProcessGroup) -> list[Any]:
        parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
        for parameter, values in zip(parameters, given[group.rank], strict=True):
            parameter.grad = None if values is None else torch.tensor(values).float()
        group.add_gradients(parameters)
        return [None if p.grad is None else p.grad.tolist() for p in parameters]

    assert together(2, work) == [[[11, 22], [3, 4], None]] * 2


def test_all_begin_with_the_first_ones_weights_and_buffers() -> None:
    def work(group: ProcessGroup) -> dict[str, list[float]]:
        network = nn.BatchNorm1d(2)
        for value in network.state_dict().values():
            value.fill_(group.rank + 1)
        trainer = Engine(lambda engine, batch: None)
        BarrierHandler(group, network).attach(trainer)
        trainer.run([0])
        return {name: value.tolist() for name, value in network.state_dict().items()}

    first, second = together(2, work)
    assert first == second
    assert first["running_mean"] == first["weight"] == [1, 1]


def test_alone_nothing_is_exchanged(monkeypatch) -> None:
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, None)
    group, parameter = join(), nn.Parameter(torch.ones(2))
    assert (group.rank, group.size) == (0, 1)
    assert group.total([3, 0.1]) == [3, 0.1]
    group.add_gradients([parameter])
    assert parameter.grad is None
    group.copy_first(nn.Linear(1, 1), None)


# ---- training --------------------------------------------------------------------------------------------------------


def network() -> PromptableSam:
    torch.manual_seed(0)
    return build_compact(image_size=SIZE, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=32)


def squares(holds: list[int], source: list[int]) -> dict[str, Tensor]:
    """A batch of images with as many squares as ``holds`` says, each of a class of its own."""
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(len(holds), 1, SIZE, SIZE)
    for b, count in enumerate(holds):
        for k in range(count):
            y, x = torch.randint(4, 40, (2,), generator=generator).tolist()
            label[b, 0, y : y + 14, x : x + 9 + b] = k + 1
    image = 60 + 70 * label + 10 * torch.randn(len(holds), 3, SIZE, SIZE, generator=generator)
    return {"image": image, "label": label, "valid": torch.ones_like(label), "source": torch.tensor(source)}


class Trainer:
    """Trains a copy of the network as one of a group."""

    def __init__(self, decay: float = 0.0, rate: float = 0.1, **settings: Any) -> None:
        self.network, self.auxiliary = network(), DenseClassLoss(32, 2)
        optimizer = torch.optim.AdamW if decay else torch.optim.SGD  # Adam divides by the gradients, and so hides them
        self.optimizer = optimizer(trained_parameters(self.network, self.auxiliary), lr=rate, weight_decay=decay)
        self.state = SimpleNamespace(iteration=0)
        self.update = InteractiveIteration(PromptableLoss(), auxiliary=self.auxiliary, **settings)
        self.points: list[Tensor] = []
        decode = self.network.decode_batch

        def spy(features: Tensor, points: Tensor, *more: Any, **named: Any) -> Any:
            self.points.append(points)
            return decode(features, points, *more, **named)

        self.network.decode_batch = spy  # type: ignore[method-assign]

    def step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        self.state.iteration += 1
        return self.update(self, batch)  # type: ignore[arg-type]

    def values(self) -> dict[str, Tensor]:
        modules = {"network": self.network, "auxiliary": self.auxiliary}
        return {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}


def train(batches: Callable[[int], list[dict[str, Tensor]]], **settings: Any) -> list[tuple[Trainer, list[Any]]]:
    """Train two processes, each on its own batches: the trainers and what each step returned."""
    trainers = [Trainer(**settings) for _ in range(2)]  # here, for their weights come from torch's one generator

    def work(group: ProcessGroup) -> tuple[Trainer, list[Any]]:
        trainers[group.rank].update.group = group
        return trainers[group.rank], [trainers[group.rank].step(batch) for batch in batches(group.rank)]

    return together(2, work)


def part(batch: dict[str, Tensor], rank: int, first: int) -> dict[str, Tensor]:
    """The first process takes ``first`` images, the second the rest."""
    return {key: value[:first] if rank == 0 else value[first:] for key, value in batch.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("holds", "source", "dense_first"),
    [
        ([1, 0, 2, 1, 1], [0, 0, 1, 0, 0], 0),  # one target and three
        ([1, 2, 1, 1, 1], [0, 0, 0, 2, 1], 0),  # images 3 and 4 do not count as known, 3 is no target either
        ([1, 1, 0, 0, 0], [0, 0, 0, 0, 0], 0),  # the second process has no target
        ([0, 0, 2, 1, 1], [1, 1, 0, 1, 0], 0),  # the first has neither a target nor a known image: no gradient at all
        ([1, 1, 1, 2, 1], [0, 0, 0, 1, 0], 1),  # the decoder is not trained yet
        ([0, 0, 0, 0, 0], [1, 1, 1, 1, 1], 0),  # nothing to learn
    ],
)
def test_gradients_are_those_of_one_process_with_the_whole_batch(holds, source, dense_first) -> None:
    batch = squares(holds, source)
    settings = {
        "iterations": 1,
        "first_prompt": {"none": 1},
        "promptless_sources": [0, 1],
        "auxiliary_weight": 0.7,
        "dense_first": dense_first,
        "clip": 0.5,
    }
    alone = Trainer(**settings)
    expected = alone.step(batch)
    for trainer, (output,) in train(lambda rank: [part(batch, rank, 2)], **settings):
        assert output == pytest.approx(expected, abs=1e-5)
        assert output.keys() == expected.keys()
        for name, value in trainer.values().items():
            wanted = alone.values()[name]
            assert (value.grad is None) == (wanted.grad is None), name
            if value.grad is not None:
                torch.testing.assert_close(value.grad, wanted.grad, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(value, wanted, atol=1e-5, rtol=0)


def test_parameters_that_nobody_trains_do_not_decay() -> None:
    batch, settings = squares([1, 0, 2], [0, 0, 0]), {"iterations": 1, "dense_first": 1, "decay": 0.5}
    before = Trainer(**settings).values()
    for trainer, _ in train(lambda rank: [part(batch, rank, 1)], **settings):
        still = {name for name, value in trainer.values().items() if torch.equal(value, before[name])}
        assert {name for name in before if ".mask_decoder." in name} <= still
        assert not {name for name in before if "image_encoder" in name or "classifier" in name} & still


@pytest.mark.slow
def test_processes_stay_together_and_draw_points_of_their_own() -> None:
    """Both are given the same images: numbers of points and lengths of loops agree, the points do not."""
    batch = squares([1, 2], [0, 0])
    settings = {"iterations": 4, "random_length": True, "first_points": (3, 2), "corrections": 3, "clip": 1.0}
    (first, outputs), (second, others) = train(
        lambda rank: [batch] * 8, rate=1e-3, decay=0.1, augment=BatchAugment(), **settings
    )
    assert outputs == others
    for name, value in first.values().items():
        assert torch.equal(value, second.values()[name]), name
    shapes = [[points.shape for points in trainer.points] for trainer in (first, second)]
    assert shapes[0] == shapes[1]
    assert len({shape[1] for shape in shapes[0]}) > 3
    drawn = [(a, b) for a, b in zip(first.points, second.points, strict=True) if a.shape[1]]
    assert not any(torch.equal(a, b) for a, b in drawn)


@pytest.mark.slow
def test_a_process_without_targets_does_not_shift_the_draws_of_the_next_batch() -> None:
    full, empty = squares([1, 2], [0, 0]), squares([0, 0], [0, 0])
    settings = {"iterations": 3, "random_length": True, "first_points": (3, 2), "corrections": 3, "rate": 0.0}
    whole = train(lambda rank: [full] * 4, **settings)
    gaps = train(lambda rank: [empty if rank else full, full, full, empty if rank else full], **settings)
    assert [p.tolist() for p in gaps[0][0].points] == [p.tolist() for p in whole[0][0].points]
    middle = [p.tolist() for p in gaps[1][0].points]
    rest = [p.tolist() for p in whole[1][0].points]
    assert 0 < len(middle) < len(rest)
    assert any(rest[k : k + len(middle)] == middle for k in range(len(rest)))
