"""PerSAM against a slow version of its three steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from monai_ext.errors import UserError
from monai_ext.inferers.cascade import guided_cascade
from monai_ext.inferers.p2sam import P2SamInferer
from monai_ext.inferers.persam import PersamInferer
from monai_ext.inferers.reference_inferer import BACKGROUND
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.ties import TOLERANCE

SIZE, ORIGINAL = (40, 64), (31, 46)  # H x W: three of eight rows of cells are padding
G, S, SQUARE = 8, 8, 64
LABELS = {"lesion": 1, "organ": 2}


def slow_cells(mask: np.ndarray) -> list[tuple[int, int]]:
    """Cells of which all four pixels at the centre are inside: 128 is just above the mean of red, 123.675."""
    c = S // 2
    return [
        (i, j)
        for i in range(SIZE[0] // S)
        for j in range(SIZE[1] // S)
        if mask[i * S + c - 1 : i * S + c + 1, j * S + c - 1 : j * S + c + 1].all()
    ]


def slow_map(feature: np.ndarray, features: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm
    return np.array(
        [[feature @ features[:, i, j] / (norm(feature) * norm(features[:, i, j])) for j in range(G)] for i in range(G)]
    )


def holds_image(i: int, j: int) -> bool:
    return (i + 0.5) * S < SIZE[0] and (j + 0.5) * S < SIZE[1]


def slow_prior(score: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """The map that points are taken on, NaN where there is only padding; the bias [g, g]."""
    if mode == "paper":
        valid = [(i, j) for i in range(G) for j in range(G) if holds_image(i, j)]
        values = [score[cell] for cell in valid]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        bias, places = np.zeros((G, G)), np.full((G, G), np.nan)
        for cell in valid:
            bias[cell], places[cell] = 1 / (1 + math.exp(-(score[cell] - mean) / deviation)), score[cell]
        return places, bias
    full = torch.tensor(score, dtype=torch.float32)[None, None]
    for size in ((4 * G, 4 * G), (SQUARE, SQUARE)):
        full = F.interpolate(full, size=size, mode="bilinear")
    full = F.interpolate(full[..., : SIZE[0], : SIZE[1]], size=ORIGINAL, mode="bilinear")
    scored = (full - full.mean()) / full.std()
    return full[0, 0].numpy(), torch.sigmoid(F.interpolate(scored, size=(G, G), mode="bilinear"))[0, 0].numpy()


def assert_extremes(points: list[list[float]], places: np.ndarray, mode: str) -> None:
    """A positive at the first place where the map is highest, a negative where it is lowest; within the tolerance."""
    (x1, y1, positive), (x0, y0, negative) = points
    assert (positive, negative) == (1, 0)
    highest, lowest = places >= np.nanmax(places) - TOLERANCE, places <= np.nanmin(places) + TOLERANCE
    for x, y, extreme in ((x1, y1, np.argwhere(highest)[0]), (x0, y0, np.argwhere(lowest)[0])):
        if mode == "paper":
            column, row = (x - (S - 1) / 2) / S, (y - (S - 1) / 2) / S
        else:
            column, row = x * ORIGINAL[1] / SIZE[1], y * ORIGINAL[0] / SIZE[0]
        assert (column, row) == pytest.approx((round(column), round(row)), abs=1e-4)
        assert (round(row), round(column)) == tuple(extreme)


def to_frame(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, size=(SQUARE, SQUARE), mode="bilinear")[..., : SIZE[0], : SIZE[1]]


def slow_cascade(network, embeddings, points, bias, feature, multimask=True) -> torch.Tensor:
    """Low-resolution logits [1, 1, 4g, 4g]."""
    given = torch.tensor(points, dtype=torch.float32)
    prompt = Prompt(given[:, :2], given[:, 2])
    guidance = {"attention_bias": torch.tensor(bias).float()[None], "target_embedding": feature[None]}
    logits, _ = network.decode(embeddings, [prompt], **guidance)
    logits, quality = network.decode(embeddings, [prompt], mask_input=logits, multimask=multimask)
    best = int(quality[0].argmax())
    logits = logits[:, best : best + 1]
    y, x = np.nonzero(F.interpolate(to_frame(logits), size=ORIGINAL, mode="bilinear")[0, 0].numpy() > 0)
    box = None
    if len(x):
        box = torch.tensor([x.min(), y.min(), x.max(), y.max()], dtype=torch.float32)
        box *= torch.tensor([SIZE[1] / ORIGINAL[1], SIZE[0] / ORIGINAL[0]] * 2)
    prompt = Prompt(given[:, :2], given[:, 2], box)
    logits, quality = network.decode(embeddings, [prompt], mask_input=logits, multimask=multimask)
    best = int(quality[0].argmax())
    return logits[:, best : best + 1]


@pytest.fixture(scope="module")
def sensitive_network(tiny_network):
    """Seed -> a tiny network whose masks depend on the guidance and on earlier masks by more than rounding."""

    def build(seed: int):
        network = tiny_network(seed)
        with torch.no_grad():
            for block in network.mask_decoder.transformer.layers:
                block.cross_attn_token_to_image.out_proj.weight *= 8
            network.prompt_encoder.mask_downscaling[-1].weight *= 40
        return network

    return build


@pytest.fixture
def label(disc) -> np.ndarray:
    return np.where(disc(SIZE, (14, 20), 9)[..., None], 1, 2 * disc(SIZE, (28, 46), 10)[..., None])


@pytest.mark.slow
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("seed", [2, 3, 10])
@pytest.mark.parametrize("mode", ["paper", "official"])
def test_same_as_the_slow_version(sensitive_network, make_image, make_loader, label, mode, seed, multimask):
    network, image = sensitive_network(seed), make_image(100 + seed, (*SIZE, 1), channels=3)
    target = make_image(seed, (*SIZE, 1), channels=3, plane_size=ORIGINAL)
    inferer = PersamInferer(LABELS, make_loader({"a": (image, label)}, LABELS), mode, multimask)
    logits, details = inferer.segment_case(target[None], network, "a", "a")
    logits = logits[0].as_tensor()
    for channel, value in enumerate(LABELS.values()):
        row = details.rows[channel]
        assert (row["status"], row["n_pos"], row["n_neg"]) == ("ok", 1, 1)
        with torch.no_grad():
            reference = network.encode(image[None, ..., 0].as_tensor()).features[0]
            cells = slow_cells(label[..., 0] == value)
            feature = sum(reference[:, i, j] for i, j in cells) / len(cells)
            embeddings = network.encode(target[None, ..., 0].as_tensor())
            places, bias = slow_prior(slow_map(feature.numpy(), embeddings.features[0].numpy()), mode)
            assert_extremes(row["points"], places, mode)
            mask = to_frame(slow_cascade(network, embeddings, row["points"], bias, feature, multimask))[0, 0]
        np.testing.assert_allclose(logits[channel, ..., 0], mask, atol=1e-5)


@torch.no_grad()
def test_the_slow_version_is_no_triviality(sensitive_network, make_image):
    """Masks have foreground, and bias and feature matter at the end of the cascade, far above the tolerance."""
    network = sensitive_network(2)
    embeddings = network.encode(make_image(2, (*SIZE, 1), channels=3)[None, ..., 0].as_tensor())
    points, bias = [[20.0, 14.0, 1], [60.0, 3.0, 0]], np.random.default_rng(0).random((G, G))
    feature = embeddings.features[0, :, 2, 3]
    full = slow_cascade(network, embeddings, points, bias, feature)
    assert (full > 0).any()
    for changed in ((0 * bias, feature), (bias, 0 * feature)):
        assert (slow_cascade(network, embeddings, points, *changed) - full).abs().max() > 2e-4


@pytest.mark.parametrize("mode", ["paper", "official"])
def test_guided_p2sam_with_one_part_decodes_as_persam(tiny_network, make_image, make_loader, mode):
    """One part, one lowest point: P²SAM for natural images is PerSAM where both mask rules agree (whole cells)."""
    label = np.zeros((*SIZE, 1), np.int64)
    label[8:32, 16:40] = 1
    loader = make_loader({"a": (make_image(100, (*SIZE, 1)), label)}, {"lesion": 1})
    network, target = tiny_network(2), make_image(2, (*SIZE, 1), plane_size=ORIGINAL)
    guided = P2SamInferer({"lesion": 1}, loader, 1, 1, mode, "lowest", attention="guided")
    persam = PersamInferer({"lesion": 1}, loader, mode)
    found = [inferer.segment_case(target[None], network, "a", "a") for inferer in (guided, persam)]
    masks, rows = [logits.as_tensor() for logits, _ in found], [details.rows[0] for _, details in found]
    assert rows[0]["points"] == rows[1]["points"]
    if mode == "official":
        assert (masks[1] > 0).any()
        torch.testing.assert_close(*masks, atol=1e-5, rtol=0)
        return
    with torch.no_grad():  # one guided pass
        embeddings = network.encode(target[None, ..., 0].as_tensor())
        reference = network.encode(loader.loaded[0].image[None, ..., 0].as_tensor()).features[0]
        feature = reference[:, 1:4, 2:5].flatten(1).mean(dim=1)
        _, bias = slow_prior(slow_map(feature.numpy(), embeddings.features[0].numpy()), mode)
        points = torch.tensor(rows[0]["points"])
        guidance = {"attention_bias": torch.tensor(bias).float()[None], "target_embedding": feature[None]}
        logits, _ = network.decode(embeddings, [Prompt(points[:, :2], points[:, 2])], **guidance)
    torch.testing.assert_close(masks[0][0, 0, ..., 0], to_frame(logits)[0, 0], atol=1e-4, rtol=0)


def test_each_number_of_parts_is_guided_by_its_own_mean_map(tiny_network, make_image, make_loader, label, monkeypatch):
    """As many biases as candidates, each of the mean of the maps of its parts; the same feature for all."""
    network, target = tiny_network(2), make_image(2, (*SIZE, 1))
    loader = make_loader({"a": (make_image(100, (*SIZE, 1)), label)}, LABELS)
    seen = {}
    decode = network.decode

    def spy(embeddings, prompts, **options):
        seen.setdefault("first", (embeddings, prompts, options))
        return decode(embeddings, prompts, **options)

    monkeypatch.setattr(network, "decode", spy)
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 3), 1, negatives="lowest", attention="guided")
    inferer(target[None], network, "a", "a")
    embeddings, prompts, options = seen["first"]
    parts = next(iter(inferer._parts.values()))
    assert len(prompts) == len(options["attention_bias"]) == 3
    features = embeddings.features[0].numpy()
    for bias, sets in zip(options["attention_bias"], parts.positive.values(), strict=True):
        mean_map = np.mean([slow_map(part.numpy(), features) for part in sets], axis=0)
        np.testing.assert_allclose(bias, slow_prior(mean_map, "paper")[1], atol=1e-4)
    torch.testing.assert_close(options["target_embedding"], parts.tokens.mean(dim=0)[None])


def test_an_empty_mask_between_the_passes_gives_no_box(tiny_network, make_image, monkeypatch):
    """PerSAM's code stops there."""
    network = tiny_network(2)
    seen = []

    def empty(embeddings, prompts, multimask=False, **options):
        seen.append([p.box for p in prompts])
        masks = 3 if multimask else 1
        return torch.full((len(prompts), masks, 4 * G, 4 * G), -1.0), torch.zeros(len(prompts), masks)

    monkeypatch.setattr(network, "decode", empty)
    with torch.no_grad():
        embeddings = network.encode(make_image(2, (*SIZE, 1))[None, ..., 0].as_tensor())
    prompt = Prompt(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))
    logits = guided_cascade(network, embeddings, [prompt], ORIGINAL, None, None)
    assert seen == [[None]] * 3
    assert logits.shape == (1, 1, 4 * G, 4 * G)


def test_without_guidance_the_first_pass_is_sam_s_own(tiny_network, make_image, make_loader, label, monkeypatch):
    network, seen = tiny_network(1), []
    decode = network.decode

    def watch(*args, **options):
        seen.append((options.get("attention_bias"), options.get("target_embedding")))
        return decode(*args, **options)

    monkeypatch.setattr(network, "decode", watch)
    loader = make_loader({"a": (make_image(5, (*SIZE, 1)), label)}, LABELS)
    for guided in (True, False):
        PersamInferer(LABELS, loader, guided=guided)(make_image(1, (*SIZE, 1))[None], network, "a", "a")
    first_passes = seen[::3]
    assert [bias is not None and target is not None for bias, target in first_passes] == [True] * 2 + [False] * 2
    assert all(guidance == (None, None) for n, guidance in enumerate(seen) if n % 3)


def test_an_empty_answer_is_no_foreground(tiny_network, make_image, make_loader, label, monkeypatch):
    nothing = torch.full((1, 1, 4 * G, 4 * G), -1.0)
    monkeypatch.setattr("monai_ext.inferers.persam.guided_cascade", lambda *args: nothing)
    inferer = PersamInferer(LABELS, make_loader({"a": (make_image(5, (*SIZE, 1)), label)}, LABELS))
    logits, details = inferer.segment_case(make_image(1, (*SIZE, 1))[None], tiny_network(1), "a", "a")
    assert [row["status"] for row in details.rows] == ["no_foreground"] * 2
    assert (logits == BACKGROUND).all()


@pytest.mark.parametrize("mode", ["paper", "official"])
def test_a_tiny_reference_is_recovered_and_flagged(tiny_network, make_image, make_loader, disc, mode):
    label = np.where(disc(SIZE, (17, 18), 1.5), 1, 2 * disc(SIZE, (28, 46), 10))[..., None]
    inferer = PersamInferer(LABELS, make_loader({"a": (make_image(5, (*SIZE, 1)), label)}, LABELS), mode)
    logits, details = inferer.segment_case(make_image(1, (*SIZE, 1))[None], tiny_network(1), "a", "a")
    assert [row["recovered"] for row in details.rows] == [True, False]
    assert torch.isfinite(logits).all()


def test_a_structure_absent_from_the_matched_slice_is_left_out(tiny_network, make_image, make_loader, disc):
    label = np.stack([disc(SIZE, (14, 20), 9), 2 * disc(SIZE, (14, 20), 9)], axis=-1)
    inferer = PersamInferer(LABELS, make_loader({"a": (make_image(5, (*SIZE, 2)), label)}, LABELS))
    _, details = inferer.segment_case(make_image(1, (*SIZE, 2))[None], tiny_network(1), "a", "a")
    status = {(row["label"], row["slice"]): row["status"] for row in details.rows}
    assert status[("organ", 0)] == status[("lesion", 1)] == "reference_absent"


def test_unknown_options_are_refused(make_loader):
    loader = make_loader({}, LABELS)
    with pytest.raises(UserError, match="mode 'fast'"):
        PersamInferer(LABELS, loader, "fast")
    with pytest.raises(UserError, match="attention 'yes'"):
        P2SamInferer(LABELS, loader, attention="yes")
