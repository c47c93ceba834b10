from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from monai_ext.errors import UserError
from monai_ext.inferers.baselines import NoPromptInferer
from monai_ext.inferers.finetune_prior import FinetunePriorInferer
from monai_ext.inferers.reference import Reference
from monai_ext.losses.promptable import PromptableLoss

SIZE = (40, 64)
LABELS = {"lesion": 1, "organ": 2}
FAST = {"steps": 3, "learning_rate": 1e-2}


@pytest.fixture
def label(disc) -> np.ndarray:
    """[H, W, 3]: both structures, the lesion alone, the lesion smaller."""
    both = np.where(disc(SIZE, (14, 20), 9), 1, 2 * disc(SIZE, (25, 45), 8))
    return np.stack([both, (both == 1).astype(np.int64), disc(SIZE, (14, 20), 5)], axis=-1)


@pytest.fixture
def loader(make_loader, make_image, label):
    moved = np.roll(label, 5, axis=1)
    return make_loader({"a": (make_image(1, (*SIZE, 3)), label), "b": (make_image(7, (*SIZE, 3)), moved)}, LABELS)


def segment(inferer, network, target, reference="a") -> torch.Tensor:
    return inferer(target[None], network, reference, reference)[0].as_tensor()


@pytest.mark.slow
@pytest.mark.parametrize("tuned", ["decoder", "all"])
def test_same_as_a_plain_training_loop(tiny_network, make_image, make_loader, label, tuned):
    """Three steps on all slices of the lesion, written as one would by hand; the network tuned is a plain copy."""
    network, image, target = tiny_network(2), make_image(1, (*SIZE, 3)), make_image(2, (*SIZE, 3))
    inferer = FinetunePriorInferer({"lesion": 1}, make_loader({"a": (image, label)}, LABELS), tuned, **FAST)
    found = segment(inferer, network, target)[0]

    own = copy.deepcopy(network)
    parts = [own.mask_decoder] + ([own.image_encoder] if tuned == "all" else [])
    optimizer = torch.optim.AdamW([p for part in parts for p in part.parameters()], lr=1e-2, weight_decay=0.05)
    images = torch.stack([image.as_tensor()[..., k] for k in range(3)])
    masks = F.pad(torch.as_tensor(label == 1).float().permute(2, 0, 1)[:, None], (0, 0, 0, 24))
    shares = F.avg_pool2d(masks, 2)
    for _ in range(3):
        nothing = torch.zeros(3, 0, 2)
        logits, quality = own.decode_batch(own.encode(images).features, nothing, nothing[..., 0])
        optimizer.zero_grad()
        PromptableLoss()(logits, quality, shares, shares >= 0.5).backward()
        optimizer.step()
    with torch.no_grad():
        expected = own(target.as_tensor().permute(3, 0, 1, 2))[:, 0].permute(1, 2, 0)
        before = network(target.as_tensor().permute(3, 0, 1, 2))[:, 0].permute(1, 2, 0)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)  # slices in another order
    assert (found - before).abs().max() > 0.1


@pytest.mark.parametrize("tuned", ["decoder", "all"])
def test_the_network_handed_in_is_untouched(loader, make_image, tiny_network, tuned):
    network = tiny_network(2)
    before = copy.deepcopy(network.state_dict())
    inferer = FinetunePriorInferer(LABELS, loader, tuned, **FAST)
    segment(inferer, network, make_image(2, (*SIZE, 3)))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training


@pytest.mark.slow
def test_tuning_brings_the_mask_nearer_to_the_reference(loader, make_image, tiny_network, label):
    """Applied to its own reference it overfits, as the paper says."""
    network, image = tiny_network(2), make_image(1, (*SIZE, 3))
    truth = np.stack([label == 1, label == 2])

    def overlap(steps: int) -> float:
        inferer = FinetunePriorInferer(LABELS, loader, steps=steps, learning_rate=3e-3)
        found = segment(inferer, network, image).numpy() > 0
        return 2 * (found & truth).sum() / (found.sum() + truth.sum())

    assert overlap(60) > overlap(0) + 0.2


@pytest.mark.slow
def test_without_steps_it_is_no_prompt(loader, make_image, tiny_network):
    network, target = tiny_network(2), make_image(2, (*SIZE, 3))
    tuned = segment(FinetunePriorInferer(LABELS, loader, steps=0), network, target)
    torch.testing.assert_close(tuned, segment(NoPromptInferer(LABELS, loader), network, target), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_every_patient_starts_from_the_same_weights(loader, make_image, tiny_network):
    network, target = tiny_network(2), make_image(2, (*SIZE, 3))
    alone = segment(FinetunePriorInferer(LABELS, loader, **FAST), network, target, "b")
    inferer = FinetunePriorInferer(LABELS, loader, **FAST)
    first = segment(inferer, network, target, "a")
    assert torch.equal(segment(inferer, network, target, "b"), alone)
    assert not torch.equal(first, alone)


def test_a_patient_is_tuned_to_once(loader, make_image, tiny_network, monkeypatch):
    calls = []
    tune = FinetunePriorInferer.tune

    def spy(self, network, references, value):
        calls.append(value)
        return tune(self, network, references, value)

    monkeypatch.setattr(FinetunePriorInferer, "tune", spy)
    inferer = FinetunePriorInferer(LABELS, loader, **FAST)
    for seed in (2, 3):
        segment(inferer, tiny_network(2), make_image(seed, (*SIZE, 3)))
    assert calls == [1, 2]


@pytest.mark.slow
def test_the_seed_alone_decides(loader, make_image, tiny_network):
    """Two of three slices a step: which ones is drawn, from the seed and not from torch's own generator."""
    network, target = tiny_network(2), make_image(2, (*SIZE, 3))

    def run(seed: int) -> torch.Tensor:
        return segment(FinetunePriorInferer(LABELS, loader, batch_size=2, seed=seed, **FAST), network, target)

    first = run(0)
    torch.manual_seed(99)
    assert torch.equal(first, run(0))
    assert not torch.equal(first, run(1))


def test_only_the_trained_parts_are_copied(loader, tiny_network):
    network = tiny_network(2)
    reference = loader("a", "a")
    with torch.no_grad():
        decoder = FinetunePriorInferer(LABELS, loader, **FAST).tune(network, reference, 1)
        whole = FinetunePriorInferer(LABELS, loader, "all", **FAST).tune(network, reference, 1)
    assert decoder.image_encoder is network.image_encoder
    assert whole.image_encoder is not network.image_encoder
    assert decoder.mask_decoder is not network.mask_decoder


def test_a_mask_thinner_than_a_cell_is_learned_from(tiny_network, make_image):
    thin = torch.zeros(1, *SIZE, 1, dtype=torch.long)
    thin[0, 20, 30] = 1
    with torch.no_grad():
        own = FinetunePriorInferer({"lesion": 1}, None, **FAST).tune(  # type: ignore[arg-type]
            tiny_network(2), [Reference(make_image(1, (*SIZE, 1)), thin)], 1
        )
    assert all(torch.isfinite(parameter).all() for parameter in own.parameters())


def test_structures_absent_from_the_matched_slice_are_left_out(loader, make_image, tiny_network):
    inferer = FinetunePriorInferer(LABELS, loader, **FAST)
    _, details = inferer.segment_case(make_image(2, (*SIZE, 3))[None], tiny_network(2), "a", "a")
    status = {(row["label"], row["slice"]): row["status"] for row in details.rows}
    assert status["organ", 1] == status["organ", 2] == "reference_absent"
    assert status["lesion", 1] != "reference_absent"


@pytest.mark.parametrize(
    ("options", "words"),
    [({"tuned": "head"}, "tuned 'head'"), ({"steps": -1}, "-1 steps"), ({"batch_size": 0}, "0 slices")],
)
def test_impossible_options_are_refused(loader, options, words):
    with pytest.raises(UserError, match=words):
        FinetunePriorInferer(LABELS, loader, **options)
