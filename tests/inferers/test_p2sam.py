from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from monai_ext.errors import UserError
from monai_ext.inferers import p2sam
from monai_ext.inferers.p2sam import P2SamInferer
from monai_ext.inferers.reference_inferer import BACKGROUND
from monai_ext.networks.sam import Embeddings
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.ties import TOLERANCE

SIZE = (40, 64)  # H x W: three of eight rows of cells are padding
ORIGINAL = (31, 46)
G, S, SQUARE = 8, 8, 64
LABELS = {"lesion": 1, "organ": 2}
SEEDS = (2, 7, 10)  # of networks whose candidates differ


# ------------------------------------------------------------------ the method, slowly (methods/p2sam.md, §1 and §8)


@dataclass
class Expected:
    n_pos: int
    n_neg: int
    points: np.ndarray  # [N, 3] x, y, label
    logits: torch.Tensor  # [H, W]
    distance: float
    distances: list[float]  # of all candidates


def slow_cells(mask) -> list[tuple[int, int]]:
    """Cells that are covered by half; where there are none, those with half of the largest cover."""
    covered = {(i, j): int(mask[i * S : (i + 1) * S, j * S : (j + 1) * S].sum()) for i in range(G) for j in range(G)}
    inside = [cell for cell, n in covered.items() if 2 * n >= S * S]
    most = max(covered.values())
    return inside or [cell for cell, n in covered.items() if most and 2 * n >= most]


def slow_mid_level_cells(mask) -> list[tuple[int, int]]:
    square = torch.zeros(1, 1, SQUARE, SQUARE)
    square[..., : mask.shape[0], : mask.shape[1]] = torch.as_tensor(mask).float() * 255
    on_grid = F.interpolate(square - 127.5, size=(G, G), mode="bilinear")[0, 0]
    return [(i, j) for i in range(G) for j in range(G) if on_grid[i, j] > 0]


def slow_parts(tokens: np.ndarray, n: int) -> np.ndarray | None:
    if len(tokens) < n:
        return None
    if n == 1:
        return tokens.mean(axis=0, keepdims=True)
    members = KMeans(n_clusters=n, init="k-means++", n_init=10, random_state=0).fit(tokens).labels_
    return np.stack([tokens[members == part].mean(axis=0) for part in range(n)])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def similarity(part: np.ndarray, features: np.ndarray) -> np.ndarray:
    return np.array([[cosine(part, features[:, i, j]) for j in range(G)] for i in range(G)])


def slow_point(score: np.ndarray, mode: str) -> tuple[float, float]:
    """(x, y) of the first place in reading order where ``score`` [g, g] is highest, within the tolerance."""
    if mode == "paper":
        cells = [(i, j) for i in range(G) for j in range(G) if (i + 0.5) * S < SIZE[0] and (j + 0.5) * S < SIZE[1]]
        best = max(score[cell] for cell in cells)
        where = next(cell for cell in cells if score[cell] >= best - TOLERANCE)
        return min(where[1] * S + (S - 1) / 2, SIZE[1] - 1), min(where[0] * S + (S - 1) / 2, SIZE[0] - 1)
    upsampled = torch.tensor(score, dtype=torch.float32)[None, None]
    for size in ((4 * G, 4 * G), (SQUARE, SQUARE)):
        upsampled = F.interpolate(upsampled, size=size, mode="bilinear")
    upsampled = F.interpolate(upsampled[..., : SIZE[0], : SIZE[1]], size=ORIGINAL, mode="bilinear")[0, 0]
    y, x = np.argwhere(upsampled.numpy() >= float(upsampled.max()) - TOLERANCE)[0]
    return x * SIZE[1] / ORIGINAL[1], y * SIZE[0] / ORIGINAL[0]


def to_frame(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, size=(SQUARE, SQUARE), mode="bilinear")[..., : SIZE[0], : SIZE[1]]


def slow_decode(network, embeddings, points: np.ndarray, mode: str) -> torch.Tensor:
    """Low-resolution logits [1, 1, 4g, 4g] of one candidate."""
    xy, labels = torch.tensor(points[:, :2], dtype=torch.float32), torch.tensor(points[:, 2])
    logits, _ = network.decode(embeddings, [Prompt(xy, labels)])
    if mode == "paper":
        return logits
    logits, _ = network.decode(embeddings, [Prompt(xy, labels)], mask_input=logits)
    original = F.interpolate(to_frame(logits), size=ORIGINAL, mode="bilinear")[0, 0]
    y, x = np.nonzero(original.numpy() > 0)
    box = None
    if len(x):
        box = torch.tensor([x.min(), y.min(), x.max(), y.max()], dtype=torch.float32)
        box *= torch.tensor([SIZE[1] / ORIGINAL[1], SIZE[0] / ORIGINAL[0]] * 2)
    logits, _ = network.decode(embeddings, [Prompt(xy, labels, box)], mask_input=logits)
    return logits


@torch.no_grad()
def slow_p2sam(network, target, references, n_pos, n_neg, mode, negatives="background") -> Expected | None:
    """P2SAM on one slice [C, H, W] with references of (slice [C, H, W], mask [H, W])."""
    inside, outside = [], []
    for image, mask in references:
        features = network.encode(image[None]).features[0].numpy()
        cells = slow_cells(mask) if mode == "paper" else slow_mid_level_cells(mask)
        for i in range(G):
            for j in range(G):
                padding = (i + 0.5) * S >= SIZE[0] or (j + 0.5) * S >= SIZE[1]
                if (i, j) in cells:
                    inside.append(features[:, i, j])
                elif mode == "official" or not padding:
                    outside.append(features[:, i, j])
    inside, outside = np.stack(inside), np.stack(outside)

    embeddings = network.encode(target[None])
    features = embeddings.features[0].numpy()
    found, distances = [], []
    for p in range(n_pos[0], n_pos[1] + 1):
        parts = slow_parts(inside, p)
        if parts is None:
            continue
        maps = [similarity(part, features) for part in parts]
        positive = [(*slow_point(m, mode), 1) for m in maps]
        for n in range(n_neg[0], n_neg[1] + 1):
            if negatives == "lowest":
                if n > 1:
                    continue
                negative = [(*slow_point(-np.mean(maps, axis=0), mode), 0)] if n else []
            elif n == 0:
                negative = []
            else:
                background = slow_parts(outside, n)
                negative = [(*slow_point(similarity(part, features), mode), 0) for part in background]
            points = np.array(positive + negative)
            low = slow_decode(network, embeddings, points, mode)
            mask = to_frame(low)[0, 0]
            if mode == "paper":
                cells = slow_cells(mask > 0)
            else:
                on_grid = F.interpolate(low, size=(G, G), mode="bilinear")[0, 0] > 0
                cells = [(i, j) for i in range(G) for j in range(G) if on_grid[i, j]]
            if not cells:
                distances.append(math.inf)
                continue
            tokens = np.stack([features[:, i, j] for i, j in cells]).astype(np.float64)
            if mode == "paper":
                cost = np.array([[1 - cosine(a.astype(np.float64), b) for b in tokens] for a in inside])
            else:
                cost = np.array([[((a.astype(np.float64) - b) ** 2).sum() for b in tokens] for a in inside])
            distances.append(ot.emd2(ot.unif(len(inside)), ot.unif(len(tokens)), np.maximum(cost, 0)))
            found.append((distances[-1], Expected(p, n, points, mask, distances[-1], distances)))
    tolerance = TOLERANCE if mode == "paper" else TOLERANCE * (inside**2).sum(axis=1).mean()
    return next((e for distance, e in found if distance <= min(distances) + tolerance), None)


# ------------------------------------------------------------------------------------------------------ the tests


def assert_same(row, logits, expected: Expected | None) -> None:
    if expected is None:
        assert row["status"] == "no_foreground"
        assert (logits == BACKGROUND).all()
        return
    assert (row["status"], row["n_pos"], row["n_neg"]) == ("ok", expected.n_pos, expected.n_neg)
    np.testing.assert_allclose(row["points"], expected.points, atol=1e-4)
    np.testing.assert_allclose(logits, expected.logits, atol=1e-5)
    assert row["distance"] == pytest.approx(expected.distance, abs=1e-6)


@pytest.fixture
def case(tiny_network, make_image, make_loader, disc):
    """Network, target [C, H, W, 1], loader of two references "a" and "b", and what the slow version takes of them."""

    def build(seed: int):
        a = np.where(disc(SIZE, (14, 20), 9)[..., None], 1, 2 * disc(SIZE, (28, 46), 10)[..., None])
        b = np.where(disc(SIZE, (20, 30), 8)[..., None], 1, 2 * disc(SIZE, (25, 12), 7)[..., None])
        images = {name: make_image(100 + seed + i, (*SIZE, 1), channels=3) for i, name in enumerate("ab")}
        loader = make_loader({"a": (images["a"], a), "b": (images["b"], b)}, LABELS)
        target = make_image(seed, (*SIZE, 1), channels=3, plane_size=ORIGINAL)
        slow = {
            (name, value): (images[name][..., 0].as_tensor(), (label == value)[..., 0])
            for name, label in (("a", a), ("b", b))
            for value in LABELS.values()
        }
        return tiny_network(seed), target, loader, slow

    return build


def segment(inferer, network, target, reference="a", **extra):
    """Return logits [L, H, W, D] of one case."""
    return inferer(target[None], network, reference, reference, **extra)[0].as_tensor()


def describe(inferer, network, target, reference="a"):
    """Return logits [L, H, W, D] of one case, and its details."""
    logits, details = inferer.segment_case(target[None], network, reference, reference)
    return logits[0].as_tensor(), details


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", ["paper", "official"])
def test_same_as_the_slow_version(case, mode, seed):
    network, target, loader, slow = case(seed)
    inferer = P2SamInferer(LABELS, loader, (1, 3), (1, 2), mode=mode)
    logits, details = describe(inferer, network, target)
    for channel, value in enumerate(LABELS.values()):
        expected = slow_p2sam(network, target[..., 0].as_tensor(), [slow["a", value]], (1, 3), (1, 2), mode)
        assert_same(details.rows[channel], logits[channel, ..., 0], expected)


@pytest.mark.slow
def test_the_slow_version_is_no_triviality(case):
    """The seeds choose different counts, and their candidates differ."""
    counts, spread = set(), []
    for seed in SEEDS:
        network, target, _, slow = case(seed)
        for mode in ("paper", "official"):
            for value in LABELS.values():
                found = slow_p2sam(network, target[..., 0].as_tensor(), [slow["a", value]], (1, 3), (1, 2), mode)
                if found is not None:
                    counts.add((found.n_pos, found.n_neg))
                    spread.append(len(set(np.round(found.distances, 5))))
    assert len(counts) >= 3
    assert np.mean(spread) > 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["paper", "official"])
def test_several_references_are_pooled(case, mode):
    network, target, loader, slow = case(2)
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 3), (1, 2), mode=mode)
    logits, details = describe(inferer, network, target, ["a", "b"])
    both = slow_p2sam(network, target[..., 0].as_tensor(), [slow["a", 1], slow["b", 1]], (1, 3), (1, 2), mode)
    one = slow_p2sam(network, target[..., 0].as_tensor(), [slow["a", 1]], (1, 3), (1, 2), mode)
    assert_same(details.rows[0], logits[0, ..., 0], both)
    assert both.distances != one.distances
    assert details.rows[0]["reference_slice"] == "0+0"


@pytest.mark.slow
def test_the_features_of_all_slices_of_the_reference_are_pooled(tiny_network, make_image, make_loader, disc):
    """As several references would be; a structure that the matched slice lacks is left out all the same."""
    network, target = tiny_network(2), make_image(0, (40, 64, 3))
    image = make_image(1, (40, 64, 3))
    label = np.stack([disc((40, 64), (18, 20 + 8 * k), 9) for k in range(3)], axis=-1)
    label[..., 2] = 0
    loader = make_loader({"a": (image, label)}, {"lesion": 1})
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 3), (1, 2), reference_slices="all")
    logits, details = describe(inferer, network, target)
    slices = [(image[..., k].as_tensor(), label[..., k] == 1) for k in range(2)]
    for k in range(2):
        expected = slow_p2sam(network, target[..., k].as_tensor(), slices, (1, 3), (1, 2), "paper")
        assert_same(details.rows[k], logits[0, ..., k], expected)
    assert details.rows[2]["status"] == "reference_absent"
    with pytest.raises(UserError, match="reference_slices 'some' is unknown: choose one of matched, all"):
        P2SamInferer({"lesion": 1}, loader, reference_slices="some")


@pytest.mark.parametrize("mode", ["paper", "official"])
def test_lowest_negative_of_natural_images(case, mode):
    network, target, loader, slow = case(2)
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 3), (1, 3), mode=mode, negatives="lowest")
    logits, details = describe(inferer, network, target)
    expected = slow_p2sam(network, target[..., 0].as_tensor(), [slow["a", 1]], (1, 3), (1, 3), mode, negatives="lowest")
    assert_same(details.rows[0], logits[0, ..., 0], expected)
    assert details.rows[0]["n_neg"] == 1


@pytest.mark.parametrize("negatives", ["background", "lowest"])
def test_no_negatives_on_request(case, negatives):
    network, target, loader, slow = case(10)
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 3), (0, 0), negatives=negatives)
    logits, details = describe(inferer, network, target)
    expected = slow_p2sam(network, target[..., 0].as_tensor(), [slow["a", 1]], (1, 3), (0, 0), "paper")
    assert_same(details.rows[0], logits[0, ..., 0], expected)
    assert all(label == 1 for *_, label in details.rows[0]["points"])


def test_negatives_may_begin_at_none(case):
    network, target, loader, slow = case(2)
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 2), (0, 2))
    _, details = describe(inferer, network, target)
    expected = slow_p2sam(network, target[..., 0].as_tensor(), [slow["a", 1]], (1, 2), (0, 2), "paper")
    assert (details.rows[0]["n_pos"], details.rows[0]["n_neg"]) == (expected.n_pos, expected.n_neg)


def test_margin_is_the_lead_over_the_runner_up(case):
    network, target, loader, slow = case(2)
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 3), (1, 2))
    _, details = describe(inferer, network, target)
    expected = slow_p2sam(network, target[..., 0].as_tensor(), [slow["a", 1]], (1, 3), (1, 2), "paper")
    best, *others = sorted(set(np.round(expected.distances, 7)))
    assert details.rows[0]["margin"] == pytest.approx(others[0] - best, abs=1e-6)


def test_only_empty_candidates_are_no_foreground(case, monkeypatch):
    network, target, loader, _ = case(2)
    nothing = (torch.full((4, 1, 4 * G, 4 * G), -1.0), torch.zeros(4, 1))
    monkeypatch.setattr(network, "decode", lambda embeddings, prompts, **options: nothing)
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 2), (1, 2))
    logits, details = describe(inferer, network, target)
    assert details.rows[0]["status"] == "no_foreground"
    assert details.rows[0].get("distance") is None
    assert (logits == BACKGROUND).all()


def test_structure_absent_from_the_matched_slice_is_left_out(tiny_network, make_image, make_loader, disc):
    label = np.stack([disc(SIZE, (14, 20), 9), 2 * disc(SIZE, (14, 20), 9)], axis=-1)
    loader = make_loader({"a": (make_image(5, (*SIZE, 2)), label)}, LABELS)
    inferer = P2SamInferer(LABELS, loader, (1, 1), (1, 1))
    logits, details = describe(inferer, tiny_network(1), make_image(1, (*SIZE, 2)))
    status = {(row["label"], row["slice"]): row["status"] for row in details.rows}
    assert status[("organ", 0)] == status[("lesion", 1)] == "reference_absent"
    assert status[("lesion", 0)] != "reference_absent"
    assert (logits[1, ..., 0] == BACKGROUND).all()
    assert (logits[0, ..., 0] != BACKGROUND).any()


def test_reference_without_the_structure_is_pooled_from_the_others(tiny_network, make_image, make_loader, disc):
    with_, without = disc(SIZE, (14, 20), 9)[..., None], 2 * disc(SIZE, (14, 20), 9)[..., None]
    images = make_image(5, (*SIZE, 1)), make_image(6, (*SIZE, 1))
    loader = make_loader({"a": (images[0], with_), "b": (images[1], without)}, {"lesion": 1})
    target, network = make_image(1, (*SIZE, 1)), tiny_network(1)
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 2), (1, 1))
    torch.testing.assert_close(segment(inferer, network, target, ["a", "b"]), segment(inferer, network, target, ["a"]))


@pytest.mark.parametrize("mode", ["paper", "official"])
@pytest.mark.parametrize("n_pos", [(1, 3), (2, 3)])
def test_tiny_reference_is_recovered_and_flagged(tiny_network, make_image, make_loader, disc, mode, n_pos):
    """One cell is left: fewer than the two parts asked for, so it is taken as one."""
    tiny, large = disc(SIZE, (17, 18), 1.5)[..., None], disc(SIZE, (28, 46), 10)[..., None]
    loader = make_loader({"a": (make_image(5, (*SIZE, 1)), np.where(tiny, 1, 2 * large))}, LABELS)
    inferer = P2SamInferer(LABELS, loader, n_pos, (1, 1), mode=mode)
    _, details = describe(inferer, tiny_network(1), make_image(1, (*SIZE, 1)))
    assert [row["recovered"] for row in details.rows] == [True, False]
    assert details.rows[0]["n_pos"] == 1


@pytest.mark.parametrize("order", [["tiny", "large"], ["large", "tiny"]])
def test_one_recovered_reference_of_several_is_flagged(tiny_network, make_image, make_loader, disc, order):
    masks = {"tiny": disc(SIZE, (17, 18), 1.5), "large": disc(SIZE, (28, 46), 10)}
    references = {name: (make_image(5 + i, (*SIZE, 1)), masks[name][..., None]) for i, name in enumerate(masks)}
    inferer = P2SamInferer({"lesion": 1}, make_loader(references, {"lesion": 1}), (1, 1), (1, 1))
    _, details = describe(inferer, tiny_network(1), make_image(1, (*SIZE, 1)), order)
    assert details.rows[0]["recovered"] is True


def test_structure_that_fills_the_image_has_no_negatives(tiny_network, make_image, make_loader):
    loader = make_loader({"a": (make_image(5, (*SIZE, 1)), np.ones((*SIZE, 1), np.int64))}, {"lesion": 1})
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 1), (1, 3))
    _, details = describe(inferer, tiny_network(1), make_image(1, (*SIZE, 1)))
    assert details.rows[0]["n_neg"] == 0


@pytest.mark.slow
def test_reference_is_encoded_and_clustered_once_a_patient(tiny_network, make_image, make_loader, disc, monkeypatch):
    network, encoded, clustered = tiny_network(1), [], []
    encode = network.encode
    monkeypatch.setattr(network, "encode", lambda images: encoded.append(1) or encode(images))
    part_sets = p2sam.part_sets
    monkeypatch.setattr(p2sam, "part_sets", lambda *args: clustered.append(1) or part_sets(*args))
    label = np.repeat(disc(SIZE, (14, 20), 9)[..., None], 2, axis=-1)
    references = {name: (make_image(i, (*SIZE, 2)), label) for i, name in enumerate("ab")}
    loader = make_loader(references, {"lesion": 1})
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 2), (1, 2))

    def spent(seed, reference):
        encoded.clear()
        clustered.clear()
        segment(inferer, network, make_image(seed, (*SIZE, 2)), reference)
        return len(encoded), len(clustered)

    assert spent(1, "a") == (4, 4)  # two slices of each; foreground and background of two slices
    assert spent(2, "a") == (2, 0)
    assert spent(3, "b") == (4, 4)
    assert spent(4, "a") == (4, 4)


def test_another_patient_leaves_nothing_behind(case):
    network, target, loader, _ = case(2)
    inferer = P2SamInferer({"lesion": 1}, loader, (1, 2), (1, 2))
    first = segment(inferer, network, target, "a")
    segment(inferer, network, target, "b")
    assert len(inferer._parts) == 1  # keys name references by id, which may be given out again
    assert torch.equal(segment(inferer, network, target, "a"), first)


def test_prompts_lie_in_the_image_not_in_the_padding(case):
    network, target, loader, _ = case(2)
    for mode in ("paper", "official"):
        inferer = P2SamInferer(LABELS, loader, (3, 3), (3, 3), mode=mode)
        _, details = describe(inferer, network, target)
        points = np.array([point for row in details.rows for point in row["points"]])
        assert (points[:, 0] <= SIZE[1] - 1).all()
        assert (points[:, 1] <= SIZE[0] - 1).all()


def test_reference_of_the_constructor_serves_calls_without_one(case):
    network, target, loader, _ = case(2)
    with_call = segment(P2SamInferer(LABELS, loader, (1, 2), (1, 1)), network, target, "a")
    inferer = P2SamInferer(LABELS, loader, (1, 2), (1, 1), reference_image="a", reference_label="a")
    assert torch.equal(inferer(target[None], network)[0].as_tensor(), with_call)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "fast"}, "mode 'fast' is unknown: choose one of paper, official"),
        ({"negatives": "none"}, "negatives 'none' is unknown"),
        ({"n_pos": [0, 3]}, r"n_pos is \[0, 3\]"),
        ({"n_pos": [3, 1]}, r"n_pos is \[3, 1\]"),
        ({"n_neg": [1]}, r"n_neg is \[1\]"),
        ({"n_neg": [-1, 2]}, r"n_neg is \[-1, 2\]"),
        ({"n_pos": "ab"}, "n_pos is"),
        ({"slice_match": "nearest"}, "slice_match 'nearest' is unknown: choose one of position, relative"),
    ],
)
def test_impossible_options_are_named(options, sentence, make_loader):
    with pytest.raises(UserError, match=sentence):
        P2SamInferer(LABELS, make_loader({}, LABELS), **options)


def test_a_single_number_is_a_range_of_one(make_loader):
    inferer = P2SamInferer(LABELS, make_loader({}, LABELS), n_pos=2, n_neg=[0, 2])
    assert (inferer.n_pos, inferer.n_neg) == ([2], [0, 1, 2])


def test_embeddings_frame_is_not_square(case):
    """The fixture would test nothing about padding if it were."""
    network, target, _, _ = case(2)
    embeddings = network.encode(target[None, ..., 0].as_tensor())
    assert isinstance(embeddings, Embeddings)
    assert embeddings.size == SIZE
    assert network.grid * network.stride > SIZE[0]
