"""Tests of monai_ext.engines.segmentor."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from monai_ext.data.scribble_slices import ScribbleDataset
from monai_ext.data.slice_store import IGNORE
from monai_ext.engines.segmentor import (
    PromptedSlices,
    SamTuning,
    SegmentorIteration,
    SegmentorTraining,
    segment_slices,
)
from monai_ext.errors import UserError
from monai_ext.handlers.training import stage_handlers
from monai_ext.inferers.embedding_cache import EmbeddingCache
from monai_ext.inferers.prompted_sam import PromptedSamInferer
from monai_ext.networks.dual_branch_unet import BranchOutputs, DualBranchUNet, build_segmentor
from monai_ext.networks.sam import build_compact
from monai_ext.transforms.augment import ScribbleAugment
from tests.stored_cases import stored_case

LABELS = {"bar": 1}


@pytest.fixture
def dataset(tmp_path) -> ScribbleDataset:
    """Four slices of 16 x 16 pixels: a bright bar, a line in it, a line outside; the last one without a scribble."""
    label = np.zeros((4, 16, 16), np.uint8)
    for k in range(4):
        label[k, 2 + k : 8 + k, 2:14] = 1
    image = (label * 160 + np.random.default_rng(0).integers(0, 60, label.shape)).astype(np.uint8)
    scribble = np.full_like(label, IGNORE)
    for k in range(3):
        scribble[k, 4 + k, 4:12], scribble[k, 14, 2:14] = 1, 0
    return ScribbleDataset([stored_case(tmp_path, image, scribble=scribble, label=label)], 16, {"a": label})


def outputs() -> BranchOutputs:
    torch.manual_seed(0)
    return BranchOutputs(*(torch.randn(2, 3, 8, 8) for _ in range(3)), torch.randn(2, 5, 2, 2))


def maps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 3, (2, 8, 8), generator=generator)
    return target.where(torch.rand(2, 8, 8, generator=generator) < 0.2, IGNORE), target


def slow_ce(logits: torch.Tensor, target: torch.Tensor) -> float:
    values = [
        -float(F.log_softmax(logits[b, :, y, x], 0)[target[b, y, x]])
        for b, y, x in (target != IGNORE).nonzero().tolist()
    ]
    return sum(values) / len(values)


def slow_dice(logits: torch.Tensor, target: torch.Tensor) -> float:
    p, parts = logits.softmax(1), []
    for c in range(p.shape[1]):
        y = (target == c).float()
        parts.append(1 - float((2 * (p[:, c] * y).sum() + 1e-5) / ((p[:, c] ** 2).sum() + y.sum() + 1e-5)))
    return sum(parts) / len(parts)


def test_terms_of_each_variant_are_those_of_the_paper() -> None:
    three, (scribble, target) = outputs(), maps()
    out, main, aux = three.out, three.main, three.aux
    mixed = (0.3 * main.softmax(1) + 0.7 * aux.softmax(1)).argmax(1)
    expected = {
        "pce": {"ce": slow_ce(out, scribble)},
        "full": {"ce": slow_ce(out, target), "dice": slow_dice(out, target)},
        "dmpls": {
            "ce": 0.5 * (slow_ce(main, scribble) + slow_ce(aux, scribble)),
            "pl": 0.5 * 0.5 * (slow_dice(main, mixed) + slow_dice(aux, mixed)),
        },
        "sam_sp": {
            "ce": 2 * sum(slow_ce(x, scribble) for x in (out, main, aux)),
            "sca": 3 * sum(slow_dice(x, target) for x in (out, main, aux)),
        },
    }
    for variant, terms in expected.items():
        given = replace(three, out=three.main) if variant == "dmpls" else three
        found = SegmentorIteration(variant, weights=(2, 3, 4)).losses(given, scribble, target, 0.3)
        found.pop("ssa", None)  # tests/losses has its reference
        assert found.keys() == terms.keys()
        for name, value in terms.items():
            assert float(found[name]) == pytest.approx(value, abs=1e-5), (variant, name)


def test_dmpls_trains_a_joint_output_like_the_two_branches() -> None:
    three, (scribble, target) = outputs(), maps()
    every = (three.out, three.main, three.aux)
    mixed = (0.3 * three.main.softmax(1) + 0.7 * three.aux.softmax(1)).argmax(1)
    found = SegmentorIteration("dmpls").losses(three, scribble, target, 0.3)
    assert float(found["ce"]) == pytest.approx(sum(slow_ce(x, scribble) for x in every) / 3, abs=1e-5)
    assert float(found["pl"]) == pytest.approx(0.5 * sum(slow_dice(x, mixed) for x in every) / 3, abs=1e-5)


def test_unknown_variants_and_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="variant 'sam' is unknown"):
        SegmentorIteration("sam")
    with pytest.raises(UserError, match="--precision 'float16' is unknown"):
        SegmentorIteration("pce", precision="float16")
    with pytest.raises(UserError, match="1 or more"):
        SegmentorTraining(build_segmentor(2), SegmentorIteration("pce"), stage_handlers, iterations=0)


def training(network: DualBranchUNet, iterations: int = 6, **options: Any) -> SegmentorTraining:
    iteration = SegmentorIteration("sam_sp", augment=ScribbleAugment(), seed=1)
    options = {"epoch_length": 2, "batch_size": 2, **options}
    return SegmentorTraining(network, iteration, stage_handlers, iterations=iterations, **options)


@pytest.mark.slow
@pytest.mark.parametrize("validates", [False, True])
def test_a_training_stopped_and_started_again_ends_as_one_in_one_go(
    dataset, tmp_path, monkeypatch, validates: bool
) -> None:
    validation = dataset if validates else None
    torch.manual_seed(0)
    network = build_segmentor(2)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    whole = training(network).run(dataset, tmp_path / "whole", validation)

    stopped = training(network)
    usual, calls = stopped.iteration.losses, []

    def power_cut(*arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == 4:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr(stopped.iteration, "losses", power_cut)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(dataset, tmp_path / "stopped", validation)
    torch.manual_seed(99)  # whatever state the next process is in
    on = training(network).run(dataset, tmp_path / "stopped", validation)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, on.state_dict()[name]), name
    written = [tmp_path / name / "held_out.json" for name in ("whole", "stopped")]
    assert [path.exists() for path in written] == [validates] * 2
    assert not validates or written[0].read_text() == written[1].read_text()
    assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())
    assert not whole.training


@pytest.mark.slow
def test_in_bfloat16_the_weights_stay_float32_and_move_nearly_the_same(dataset, tmp_path) -> None:
    torch.manual_seed(0)
    network = build_segmentor(2)
    moved = []
    for precision in ("float32", "bfloat16"):
        step = SegmentorIteration("sam_sp", precision=precision, seed=1)
        found = SegmentorTraining(network, step, stage_handlers, iterations=1, batch_size=4).run(
            dataset, tmp_path / precision
        )
        assert {value.dtype for value in found.parameters()} == {torch.float32}
        pairs = zip(found.parameters(), network.parameters(), strict=True)
        moved.append(torch.cat([(new - old).flatten() for new, old in pairs]).detach())
    assert not torch.equal(*moved)
    assert float(torch.cosine_similarity(*moved, dim=0)) > 0.98


@pytest.mark.slow
def test_the_rate_falls_with_each_iteration_to_the_power_of_nine_tenths(dataset, tmp_path) -> None:
    network = build_segmentor(2)
    trainer = training(network, 4, learning_rate=0.5).trainer(network, dataset, tmp_path)
    rates: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.run()
    assert rates == pytest.approx([0.5 * (1 - i / 4) ** 0.9 for i in range(4)])


def test_slices_are_segmented_on_their_own_grid(dataset) -> None:
    class Threshold(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([0.4 - image, image - 0.4], dim=1)

    planes = np.asarray(dataset.images[0])
    found = segment_slices(Threshold(), planes, dataset, "cpu")
    assert (found == (planes > 0.4 * 255)).all()
    small = ScribbleDataset(dataset.data, 8)
    assert segment_slices(Threshold(), planes[:, :12], small, "cpu").shape == (4, 12, 16)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return build_compact(image_size=32, stride=8, channels=(8, 8, 16, 16), blocks=(1, 1, 1), width=16).eval()


def prompted(dataset, network, folder: Path, masks: np.ndarray, keep: float = 1.0) -> PromptedSlices:
    cache, truth = EmbeddingCache(folder, network), np.asarray(dataset.data[0].load("label"))
    return PromptedSlices(dataset, {"a": masks}, {"a": truth}, PromptedSamInferer(LABELS), cache, keep)


def test_sam_is_tuned_where_a_structure_is_scribbled_on_and_found(dataset, tiny, tmp_path) -> None:
    masks = np.array(dataset.data[0].load("label"))
    masks[1] = 0
    found = prompted(dataset, tiny, tmp_path, masks)
    assert [key for key, _ in found.items] == [(0, 0), (0, 2)]  # 1 is empty, 3 has no scribble
    assert len(prompted(dataset, tiny, tmp_path, np.zeros_like(masks))) == 0
    item = found[1]
    assert torch.equal(item["mask"], torch.from_numpy(masks[2]))
    assert item["features"].shape == (16, 4, 4)


def test_slices_on_which_segmentor_and_pseudo_labels_agree_least_are_left_out(dataset, tiny, tmp_path) -> None:
    masks = np.array(dataset.data[0].load("label"))
    masks[0, :, 8:], masks[2, :, 12:] = 0, 0
    assert [key for key, _ in prompted(dataset, tiny, tmp_path, masks, 0.67).items] == [(0, 1), (0, 2)]
    assert [key for key, _ in prompted(dataset, tiny, tmp_path, masks, 0.3).items] == [(0, 1)]


def test_a_step_of_the_tuning_is_that_of_the_mean_loss_and_moves_the_decoder_alone(dataset, tiny, tmp_path) -> None:
    slices = prompted(dataset, tiny, tmp_path / "embeddings", np.array(dataset.data[0].load("label")))
    inferer, other = PromptedSamInferer(LABELS), deepcopy(tiny)
    optimizer = torch.optim.AdamW(other.mask_decoder.parameters(), lr=1e-3, weight_decay=0.1)
    total = torch.zeros(())
    for item in (slices[k] for k in range(3)):  # each has one structure
        p = inferer.decode(other, item["features"][None], [item["prompts"][0][1]], (16, 16))[0].sigmoid()
        y, drawn = (item["mask"] == 1).float(), item["scribble"]
        both, sizes = (p * y).sum(), p.sum() + y.sum()
        on, off = -p[drawn == 1].log().sum(), -(1 - p[drawn == 0]).log().sum()
        total = total + (1 - 2 * both / sizes) + (1 - both / (sizes - both)) + (on + off) / (drawn != IGNORE).sum()
    (total / 3).backward()
    optimizer.step()

    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    tuning = SamTuning(inferer, stage_handlers, epochs=1, batch_size=3, learning_rate=1e-3, weight_decay=0.1)
    tuning.run(tiny, slices, tmp_path / "sam")
    after = tiny.state_dict()
    assert {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])} == {"mask_decoder"}
    gradients = {name: value.grad for name, value in other.named_parameters() if value.grad is not None}
    clear = [name for name, grad in gradients.items() if grad.abs().min() > 1e-6]  # Adam divides by |g|
    assert len(clear) > 10
    for name in clear:
        torch.testing.assert_close(after[name], other.state_dict()[name], atol=1e-5, rtol=0)


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(UserError, match="--keep 0"):
        SamTuning(PromptedSamInferer(LABELS), stage_handlers, keep=0)
