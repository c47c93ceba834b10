"""Tests of monai_ext.engines.interactive with a tiny compact model."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_ext.data.slice_store import IGNORE
from monai_ext.engines.interactive import (
    FIRST_PROMPTS,
    SURELY_OUTSIDE,
    InteractiveIteration,
    PromptedValidation,
    autocast,
    draw_targets,
    mask_only_steps,
    stop_no_prompt_gradients,
    to_decoder_grid,
    trained_parameters,
)
from monai_ext.losses.correspondence import CorrespondenceLoss
from monai_ext.losses.promptable import DenseClassLoss, PromptableLoss
from monai_ext.networks.sam import PromptableSam, add_drop_path, build_compact
from monai_ext.prompts.sampling import centre_click
from monai_ext.transforms.augment import BatchAugment

SIZE, SIDE = 64, 32  # the decoder's masks have half as many pixels along a side


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def network() -> PromptableSam:
    torch.manual_seed(0)
    return build_compact(image_size=SIZE, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=32)


def discs(count: int = 4) -> dict[str, Tensor]:
    """A batch of images with two discs, class 1 bright and class 2 dark; the last 8 columns are padding."""
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    image = np.full((count, 3, SIZE, SIZE), 110.0, np.float32)
    label = np.zeros((count, 1, SIZE, SIZE), np.float32)
    for b in range(count):
        for value, left in ((1, 6), (2, 30)):
            y, x, radius = rng.uniform(14, 50), left + rng.uniform(8, 16), rng.uniform(5, 8)
            label[b, 0][np.hypot(rows - y, columns - x) < radius] = value
        image[b] += 90 * (label[b] == 1) - 80 * (label[b] == 2)
    valid = np.ones_like(label)
    valid[..., 56:] = 0
    arrays = {"image": (image + rng.normal(0, 5, image.shape).astype(np.float32)) * valid, "label": label * valid}
    source = torch.zeros(count, dtype=torch.long)
    return {**{k: torch.from_numpy(v) for k, v in arrays.items()}, "valid": torch.from_numpy(valid), "source": source}


def trainer(network: nn.Module, auxiliary: nn.Module | None = None, rate: float = 0.0, decay: float = 0.0) -> Any:
    """What the iteration needs of MONAI's trainer; with rate 0 the network stays as it is."""
    optimizer = torch.optim.AdamW(trained_parameters(network, auxiliary), lr=rate, weight_decay=decay)
    return SimpleNamespace(network=network, optimizer=optimizer, state=SimpleNamespace(iteration=0))


def step(update: InteractiveIteration, engine: Any, batch: dict[str, Tensor], iteration: int) -> dict[str, float]:
    engine.state.iteration = iteration
    return update(engine, batch)


class Calls(list):
    """What the decoder was asked and what it answered, one dictionary a call."""

    def __init__(self, network: PromptableSam, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        decode = network.decode_batch

        def spy(features, points, labels, boxes=None, mask_input=None, multimask=False):
            logits, quality = decode(features, points, labels, boxes, mask_input, multimask)
            given = {"points": points, "labels": labels, "boxes": boxes, "mask_input": mask_input}
            self.append({**given, "features": features, "logits": logits, "multimask": multimask})
            return logits, quality

        monkeypatch.setattr(network, "decode_batch", spy)


class Losses(PromptableLoss):
    """The loss that remembers its targets and values."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor] = []
        self.values: list[float] = []

    def forward(self, logits: Tensor, quality: Tensor, masks: Tensor, truth: Tensor | None = None) -> Tensor:
        value = super().forward(logits, quality, masks, truth)
        assert truth is not None
        assert bool(truth.any(dim=(1, 2, 3)).all())  # a structure too small for a cell still counts for the IoU
        self.masks.append(masks)
        self.values.append(float(value.detach()))
        return value


def only(kind: str) -> dict[str, float]:
    return {kind: 1.0}


# ---- targets ---------------------------------------------------------------------------------------------------------


def test_targets_are_structures_of_their_image() -> None:
    labels = torch.zeros(4, 5, 6, dtype=torch.long)
    labels[0, 1, :2], labels[0, 2, 3], labels[2, 4] = 1, 5, 2  # images 1 and 3 hold nothing
    owners, masks = draw_targets(labels, 3, False, seeded())
    assert owners.tolist() == [0, 0, 0, 2, 2, 2]
    assert masks.dtype == torch.bool
    for owner, mask in zip(owners, masks, strict=True):
        values = labels[owner][mask].unique()
        assert len(values) == 1
        assert values[0] > 0
        assert torch.equal(mask, labels[owner] == values[0])


def test_every_structure_is_drawn_equally_often() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 0], labels[0, 1, 0], labels[0, 2, 1] = 1, 2, 7
    owners, masks = draw_targets(labels, 3000, False, seeded())
    shares = [float((masks.flatten(1).sum(1) == 4).float().mean()), float(masks[:, 1, 0].float().mean())]
    assert len(owners) == 3000
    assert shares == pytest.approx([1 / 3, 1 / 3], abs=0.04)


def test_target_without_a_prompt_is_the_union() -> None:
    labels = torch.zeros(3, 4, 4, dtype=torch.long)
    labels[0, 0], labels[0, 1, 0], labels[2, 2, 1] = 1, 2, 7
    owners, masks = draw_targets(labels, 3, True, seeded())
    assert owners.tolist() == [0, 2]
    assert torch.equal(masks, labels[[0, 2]] > 0)


@pytest.mark.parametrize("union", [False, True])
def test_no_structure_gives_no_target(union: bool) -> None:
    owners, masks = draw_targets(torch.zeros(2, 4, 5, dtype=torch.long), 3, union, seeded())
    assert owners.shape == (0,)
    assert masks.shape == (0, 4, 5)


def test_decoder_grid_cell_by_cell() -> None:
    masks = torch.rand(3, 12, 12, generator=seeded()) < 0.5
    masks[1] = False
    masks[1, 5, 7] = True  # covers half of no cell
    masks[2] = False
    masks[2, :3, :3], masks[2, 11, 11] = True, True  # a full cell and a speck
    valid = torch.zeros(3, 12, 12, dtype=torch.bool)
    valid[:, :10, :7] = True
    shares, cells, inside = to_decoder_grid(masks, valid, 4)
    for k in range(3):
        counts = [[sum(masks[k, 3 * i + a, 3 * j + b] for a in range(3) for b in range(3)) for j in range(4)]
                  for i in range(4)]  # fmt: skip
        most = max(int(c) for row in counts for c in row)
        for i in range(4):
            for j in range(4):
                count = int(counts[i][j])
                assert float(shares[k, i, j]) == pytest.approx(count / 9)
                assert bool(cells[k, i, j]) == (count >= 4.5 if most >= 4.5 else count > 0)
                assert bool(inside[k, i, j]) == (i <= 3 and j <= 2)


# ---- the loop --------------------------------------------------------------------------------------------------------


def test_two_of_eleven_steps_see_the_mask_alone() -> None:
    drawn = [mask_only_steps(11, seeded(s)) for s in range(300)]
    assert all(len(steps) == 2 and 10 in steps for steps in drawn)
    assert set().union(*drawn) == set(range(1, 11))  # never the first


@pytest.mark.parametrize(("length", "count"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (8, 2)])
def test_mask_only_steps_of_short_loops(length: int, count: int) -> None:
    for seed in range(20):
        steps = mask_only_steps(length, seeded(seed))
        assert len(steps) == count
        assert 0 not in steps
        assert not count or length - 1 in steps


@pytest.mark.parametrize("kind", FIRST_PROMPTS)
def test_loop_feeds_logits_back_and_drops_points_twice(network, monkeypatch, kind: str) -> None:
    calls, losses = Calls(network, monkeypatch), Losses()
    update = InteractiveIteration(losses, 11, first_prompt=only(kind), first_points=(2, 3), corrections=4)
    output = step(update, trainer(network), discs(), 1)
    assert len(calls) == 11
    alone = [i for i, call in enumerate(calls) if i and call["points"].shape[1] == 0 and call["boxes"] is None]
    assert len(alone) == 2
    assert alone[1] == 10
    assert calls[0]["mask_input"] is None
    for earlier, call in pairwise(calls):
        assert torch.equal(call["mask_input"], earlier["logits"].detach())
        assert not call["mask_input"].requires_grad
    prompted = [call for i, call in enumerate(calls) if i not in alone]
    for earlier, call in pairwise(prompted):
        before, now = earlier["points"], call["points"]
        assert 1 <= now.shape[1] - before.shape[1] <= 4
        assert torch.equal(now[:, : before.shape[1]], before), "earlier points are kept"
        assert torch.equal(call["labels"][:, : before.shape[1]], earlier["labels"])
        assert (call["boxes"] is None) == (kind != "box")
    assert not any(call["multimask"] for call in calls)
    assert output["mask_loss"] == output["loss"] == pytest.approx(np.mean(losses.values), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "least", "most", "boxed"), [("none", 0, 0, False), ("points", 1, 5, False), ("box", 0, 0, True)]
)
def test_first_prompts(network, monkeypatch, kind: str, least: int, most: int, boxed: bool) -> None:
    calls = Calls(network, monkeypatch)
    engine = trainer(network)
    update = InteractiveIteration(PromptableLoss(), 1, first_prompt=only(kind), first_points=(2, 3))
    for iteration in range(1, 31):
        step(update, engine, discs(2), iteration)
    counts = {call["points"].shape[1] for call in calls}
    assert (min(counts), max(counts)) == (least, most)
    assert all((call["boxes"] is not None) == boxed for call in calls)
    if kind == "points":
        assert {int(n) for call in calls for n in call["labels"].sum(1)} == {1, 2}


def test_first_points_lie_in_the_structure_in_input_pixels(network, monkeypatch) -> None:
    """A point is the centre of a decoder pixel, two input pixels wide: half-integers, in or beside the mask."""
    calls = Calls(network, monkeypatch)
    batch = discs(3)
    losses = Losses()
    step(InteractiveIteration(losses, 1, first_prompt=only("points"), first_points=(4, 4)), trainer(network), batch, 1)
    (call,) = calls
    assert torch.equal(call["points"] % 2, torch.full_like(call["points"], 0.5))
    for k in range(3):
        for (x, y), label in zip(call["points"][k].tolist(), call["labels"][k].tolist(), strict=True):
            covered = losses.masks[0][k, 0, int(y) // 2, int(x) // 2]
            assert (covered >= 0.5) == (label == 1)
            assert x < 56, "a point lies in the padding"


@pytest.mark.slow
def test_boxes_enclose_the_structure_in_input_pixels(network, monkeypatch) -> None:
    calls = Calls(network, monkeypatch)
    batch = discs(3)
    batch["label"][batch["label"] == 2] = 0
    update = InteractiveIteration(PromptableLoss(), 1, first_prompt=only("box"))
    boxes = []
    engine = trainer(network)
    for iteration in range(1, 61):
        step(update, engine, batch, iteration)
        boxes.append(calls[-1]["boxes"])
    mean = torch.stack(boxes).mean(0)
    for k in range(3):
        y, x = torch.nonzero(batch["label"][k, 0] == 1, as_tuple=True)
        tight = torch.stack([x.min(), y.min(), x.max(), y.max()]).float()
        torch.testing.assert_close(mean[k], tight, atol=1.3, rtol=0)


def test_promptless_target_is_the_union_and_others_are_one_structure(network) -> None:
    batch = discs(3)
    for kind in FIRST_PROMPTS:
        losses = Losses()
        step(InteractiveIteration(losses, 2, first_prompt=only(kind), objects=2), trainer(network), batch, 1)
        union = nn.functional.avg_pool2d((batch["label"] > 0).float(), 2)
        if kind == "none":
            torch.testing.assert_close(losses.masks[0], union)
        else:
            assert losses.masks[0].shape == (6, 1, SIDE, SIDE)
            for k, mask in enumerate(losses.masks[0]):
                single = [nn.functional.avg_pool2d((batch["label"][k // 2] == v).float()[None], 2)[0] for v in (1, 2)]
                assert torch.equal(mask, single[0]) != torch.equal(mask, single[1])


def test_each_target_is_decoded_with_the_embedding_of_its_image(network, monkeypatch) -> None:
    calls = Calls(network, monkeypatch)
    batch = discs(3)
    batch["label"][1] = 0
    step(InteractiveIteration(PromptableLoss(), 1, first_prompt=only("points"), objects=2), trainer(network), batch, 1)
    with torch.no_grad():
        features = network.encode(batch["image"]).features
    torch.testing.assert_close(calls[0]["features"].detach(), features[[0, 0, 2, 2]], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first_prompt", "expected"), [(None, [1 / 3] * 3), ({"none": 1, "points": 3}, [0.25, 0.75, 0])]
)
def test_share_of_first_prompts(network, monkeypatch, first_prompt, expected: list[float]) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        InteractiveIteration,
        "_interact",
        lambda self, network, features, owners, masks, inside, unknown, kind, draws: (
            drawn.append(kind) or features.sum()
        ),
    )
    monkeypatch.setattr(network, "encode", lambda image: SimpleNamespace(features=torch.zeros(1, requires_grad=True)))
    engine, batch = trainer(network), {key: value[..., :8, :8] for key, value in discs(1).items() if key != "source"}
    batch["label"][..., 0, 0] = 1
    update = InteractiveIteration(PromptableLoss(), first_prompt=first_prompt)
    for iteration in range(1, 601):
        step(update, engine, batch, iteration)
    assert [drawn.count(kind) / 600 for kind in FIRST_PROMPTS] == pytest.approx(expected, abs=0.06)


@pytest.mark.slow
def test_random_lengths_reach_from_one_to_all(network, monkeypatch) -> None:
    losses = Losses()
    update = InteractiveIteration(losses, 3, random_length=True)
    engine, lengths = trainer(network), []
    for iteration in range(1, 25):
        before = len(losses.values)
        step(update, engine, discs(1), iteration)
        lengths.append(len(losses.values) - before)
    assert set(lengths) == {1, 2, 3}


def test_unknown_first_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown first prompts \['scribble'\]: choose among none, points, box"):
        InteractiveIteration(PromptableLoss(), first_prompt={"scribble": 1.0})


# ---- repeatability ---------------------------------------------------------------------------------------------------


def prompts_of(network: PromptableSam, iterations: list[int], seed: int) -> list[list[Tensor]]:
    """The points, boxes and masks that the decoder saw in the last of the iterations; the network stays as it is."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = Calls(network, monkeypatch)
        update = InteractiveIteration(
            PromptableLoss(), 3, first_points=(3, 3), corrections=3, objects=2, augment=BatchAugment(), seed=seed
        )
        engine = trainer(network)
        for iteration in iterations:
            calls.clear()
            step(update, engine, discs(2), iteration)
        return [[v for v in (c["points"], c["labels"], c["boxes"], c["logits"]) if v is not None] for c in calls]


def same(one: list[list[Tensor]], other: list[list[Tensor]]) -> bool:
    return [len(c) for c in one] == [len(c) for c in other] and all(
        torch.equal(a, b) for c, d in zip(one, other, strict=True) for a, b in zip(c, d, strict=True)
    )


@pytest.mark.slow
def test_prompts_depend_on_seed_and_iteration_alone(network) -> None:
    third = prompts_of(network, [1, 2, 3], seed=4)
    torch.manual_seed(99)
    assert same(third, prompts_of(network, [3], seed=4))
    assert not same(third, prompts_of(network, [3], seed=5))
    assert not same(third, prompts_of(network, [4], seed=4))


@pytest.mark.slow
def test_stochastic_depth_depends_on_seed_and_iteration_alone(network) -> None:
    network.image_encoder.blocks = nn.ModuleList([nn.Identity(), nn.Conv2d(32, 32, 1)])
    add_drop_path(network, 0.5)
    plain = network.image_encoder.forward
    network.image_encoder.forward = lambda x: network.image_encoder.blocks[1](plain(x))
    update, engine = InteractiveIteration(PromptableLoss(), 1), trainer(network)
    first = [step(update, engine, discs(2), i)["loss"] for i in range(1, 9)]
    torch.manual_seed(99)
    assert [step(update, engine, discs(2), i)["loss"] for i in range(5, 9)] == first[4:]


# ---- what learns -----------------------------------------------------------------------------------------------------


def no_prompt_embeddings(network: PromptableSam) -> list[nn.Parameter]:
    return [network.prompt_encoder.not_a_point_embed.weight, network.prompt_encoder.no_mask_embed.weight]


@pytest.mark.parametrize("kind", FIRST_PROMPTS)
def test_no_prompt_embeddings_never_learn(network, kind: str) -> None:
    before = [p.detach().clone() for p in no_prompt_embeddings(network)]
    others = {n: p.detach().clone() for n, p in network.named_parameters()}
    engine = trainer(network, rate=0.1, decay=0.5)
    trained = {id(p) for group in engine.optimizer.param_groups for p in group["params"]}
    update = InteractiveIteration(PromptableLoss(), 3, first_prompt=only(kind))
    for iteration in range(1, 4):
        step(update, engine, discs(2), iteration)
    for parameter, old in zip(no_prompt_embeddings(network), before, strict=True):
        assert parameter.grad is None
        assert id(parameter) not in trained
        assert torch.equal(parameter, old)
    moved = {n for n, p in network.named_parameters() if not torch.equal(p, others[n])}
    assert {"image_encoder.stem.0.weight", "mask_decoder.iou_token.weight"} <= moved


def test_all_but_the_no_prompt_embeddings_are_trained(network) -> None:
    auxiliary = DenseClassLoss(32, 2)
    trained = {id(p) for p in trained_parameters(network, auxiliary)}
    frozen = [n for n, p in [*network.named_parameters(), *auxiliary.named_parameters()] if id(p) not in trained]
    assert frozen == ["prompt_encoder.not_a_point_embed.weight", "prompt_encoder.no_mask_embed.weight"]
    stop_no_prompt_gradients(network)
    assert not any(p.requires_grad for p in no_prompt_embeddings(network))


def test_encoder_learns_from_every_step_of_the_loop(network, monkeypatch) -> None:
    """Declared deviation: the gradient that reaches the embedding is that of all iterations together."""
    calls = Calls(network, monkeypatch)
    update = InteractiveIteration(PromptableLoss(), 3, first_prompt=only("points"))
    step(update, trainer(network), discs(2), 1)
    assert all(call["features"] is calls[0]["features"] and call["features"].requires_grad for call in calls)


@pytest.mark.slow
def test_pixels_without_a_known_class_are_neither_prompted_nor_scored(network, monkeypatch) -> None:
    batch, scored = discs(2), []
    batch["label"][:, :, :, :24] = IGNORE  # with all of the first disc

    class Loss(PromptableLoss):
        def forward(self, logits: Tensor, quality: Tensor, masks: Tensor, truth: Tensor | None = None) -> Tensor:
            scored.append(logits)
            return super().forward(logits, quality, masks, truth)

    calls = Calls(network, monkeypatch)
    update = InteractiveIteration(Loss(), 3, first_prompt=only("points"), first_points=(2, 4), corrections=2)
    for iteration in range(1, 6):
        step(update, trainer(network), batch, iteration)
    whole = SIDE * 24 // SIZE  # cells of the decoder's grid that lie in the unknown part
    assert all((logits[..., :whole] == SURELY_OUTSIDE).all() for logits in scored)
    assert all((logits[..., whole:] != SURELY_OUTSIDE).all() for logits in scored)
    points = torch.cat([call["points"].flatten(0, 1) for call in calls])
    assert points[:, 0].min() >= 24


def test_validation_does_not_score_pixels_without_a_known_class(network) -> None:
    def scores(batch: dict[str, Tensor]) -> list[float]:
        validation = PromptedValidation()
        validation._clear(cast(Any, None))
        validation(cast(Any, SimpleNamespace(network=network)), batch)
        return validation.scores["no_prompt_dice"]

    batch = discs(2)
    known = scores(batch)
    batch["label"] = torch.where(batch["label"] == 0, float(IGNORE), batch["label"])
    alone = scores(batch)  # what lies outside of the discs costs nothing now
    assert all(one >= other for one, other in zip(alone, known, strict=True))
    assert alone != known


def test_dense_iterations_train_the_encoder_alone(network, monkeypatch) -> None:
    calls = Calls(network, monkeypatch)
    auxiliary = DenseClassLoss(32, 2)
    engine = trainer(network, auxiliary, rate=0.01)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    update = InteractiveIteration(PromptableLoss(), 1, auxiliary=auxiliary, auxiliary_weight=0.5, dense_first=2)
    for iteration in (1, 2):
        output = step(update, engine, discs(2), iteration)
        assert set(output) == {"auxiliary_loss", "loss"}
        assert output["loss"] == pytest.approx(0.5 * output["auxiliary_loss"])
    assert calls == []
    moved = {n.split(".")[0] for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"image_encoder"}
    output = step(update, engine, discs(2), 3)
    assert len(calls) == 1
    assert output["loss"] == pytest.approx(output["mask_loss"] + 0.5 * output["auxiliary_loss"])


def test_auxiliary_loss_knows_the_classes_of_its_sources_alone(network) -> None:
    seen: list[list[bool]] = []

    class Auxiliary(DenseClassLoss):
        def forward(self, features: Tensor, labels: Tensor, known: Tensor, decided: Tensor | None = None) -> Tensor:
            seen.append(known.tolist())
            return super().forward(features, labels, known, decided)

    auxiliary = Auxiliary(32, 2)
    update = InteractiveIteration(PromptableLoss(), 1, auxiliary=auxiliary, auxiliary_sources=(0, 2))
    batch = {**discs(4), "source": torch.tensor([0, 1, 2, 1])}
    step(update, trainer(network, auxiliary), batch, 1)
    assert seen == [[True, False, True, False]]


@pytest.mark.parametrize("case", ["no structure left", "dense iteration of phantoms alone"])
def test_batch_with_nothing_to_learn_changes_nothing(network, case: str) -> None:
    batch = discs(2)
    auxiliary = None
    if case == "no structure left":
        batch["label"] = torch.zeros_like(batch["label"])
    else:
        auxiliary, batch["source"] = DenseClassLoss(32, 2), torch.ones(2)
    engine = trainer(network, auxiliary, rate=0.1)
    before = [p.detach().clone() for p in network.parameters()]
    update = InteractiveIteration(PromptableLoss(), 1, auxiliary=auxiliary, dense_first=1 if auxiliary else 0, clip=1.0)
    assert step(update, engine, batch, 1)["loss"] == 0
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


def test_gradients_are_clipped(network) -> None:
    norms = []
    for clip in (None, 0.05):
        engine = trainer(network)
        step(InteractiveIteration(PromptableLoss(), 1, clip=clip), engine, discs(2), 1)
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
    assert norms[0] > 0.06
    assert norms[1] == pytest.approx(0.05, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_loss_falls_on_images_seen_again_and_again(network, dtype) -> None:
    torch.manual_seed(0)
    auxiliary = DenseClassLoss(32, 2)
    engine = trainer(network, auxiliary, rate=3e-3)
    update = InteractiveIteration(
        PromptableLoss(), 2, first_points=(2, 2), objects=2, auxiliary=auxiliary, dtype=dtype, clip=1.0
    )
    batch = discs(4)
    outputs = [step(update, engine, batch, iteration) for iteration in range(1, 37)]
    for name in ("mask_loss", "auxiliary_loss"):
        values = [output[name] for output in outputs]
        assert np.mean(values[-6:]) < 0.6 * np.mean(values[:6]), name


def test_precision() -> None:
    cpu = torch.device("cpu")
    x = torch.ones(2, 2)
    with autocast(cpu, "bfloat16"):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(cpu, None):
        assert (x @ x).dtype == torch.float32


# ---- validation ------------------------------------------------------------------------------------------------------


def slow_dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / max(float(one.sum() + other.sum()), 1)


def test_validation_clicks_each_structure_and_asks_for_their_union(network) -> None:
    validation = PromptedValidation()
    engine = SimpleNamespace(network=network.train(), state=SimpleNamespace(metrics={}))
    batches = [discs(3), {k: v[:1] for k, v in discs(2).items()}]
    batches[1]["label"][batches[1]["label"] == 2] = 0
    clicked, promptless = [], []
    validation._clear(engine)
    for batch in batches:
        validation(engine, batch)
    assert not network.training
    with torch.no_grad():
        for batch in batches:
            for image, label in zip(batch["image"], batch["label"][:, 0].numpy(), strict=True):
                embedding = network.encode(image[None])
                for value in sorted(set(label[label > 0])):
                    click = torch.tensor([[centre_click(label == value)]]).float()
                    logits, _ = network.decode_batch(embedding.features, click, torch.ones(1, 1))
                    predicted = network.to_image(logits, (SIZE, SIZE))[0, 0].numpy() > 0
                    clicked.append(slow_dice(predicted, label == value))
                promptless.append(slow_dice(network(image[None])[0, 0].numpy() > 0, label > 0))
    validation._finish(engine)
    assert len(clicked) == 7
    assert 0 < np.mean(clicked) < 1
    expected = {"click_dice": np.mean(clicked), "no_prompt_dice": np.mean(promptless)}
    assert engine.state.metrics == pytest.approx(expected, abs=1e-4)
    validation._clear(engine)
    validation._finish(engine)
    assert engine.state.metrics == {"click_dice": 0, "no_prompt_dice": 0}


# ---- two views -------------------------------------------------------------------------------------------------------


def two_views() -> dict[str, Tensor]:
    batch = discs()
    stacked = {key: torch.stack([batch[key], batch[key].roll(1, 0)], dim=1) for key in ("image", "label", "valid")}
    return {**stacked, "source": torch.tensor([0, 1, 0, 0])}


def test_views_are_images_of_their_own(network, monkeypatch) -> None:
    calls = Calls(network, monkeypatch)
    update = InteractiveIteration(PromptableLoss(), iterations=1, first_prompt=only("none"), promptless_sources=[0])
    step(update, trainer(network), two_views(), 1)
    assert len(calls[0]["points"]) == 2 * 3  # both views of the three slices of source 0


def test_regions_have_to_find_each_other_in_two_views(network) -> None:
    batch, loss = two_views(), CorrespondenceLoss()
    options = {"iterations": 1, "first_prompt": only("points"), "seed": 3}
    plain = step(InteractiveIteration(PromptableLoss(), **options), trainer(network), batch, 1)
    both = InteractiveIteration(PromptableLoss(), **options, correspondence=loss, correspondence_weight=0.25)
    output = step(both, trainer(network), batch, 1)
    assert "correspondence_loss" not in plain
    assert output["loss"] == pytest.approx(output["mask_loss"] + 0.25 * output["correspondence_loss"])
    images, labels = (batch[key].flatten(0, 1) for key in ("image", "label"))
    features = network.train().encode(images).features
    expected = loss(features, labels[:, 0].long(), torch.ones_like(labels[:, 0]) > 0, seeded())
    assert 0 < output["correspondence_loss"] < 2 * float(expected.mean().detach())


@pytest.mark.slow
def test_correspondence_teaches_the_encoder(network) -> None:
    update = InteractiveIteration(
        PromptableLoss(), iterations=1, dense_first=100, correspondence=CorrespondenceLoss(), seed=1
    )
    engine = trainer(network, rate=3e-3)
    values = [step(update, engine, two_views(), i)["correspondence_loss"] for i in range(1, 25)]
    assert np.mean(values[-4:]) < 0.8 * np.mean(values[:4])
