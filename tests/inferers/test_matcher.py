from __future__ import annotations

from itertools import combinations

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from monai_ext.inferers.matcher import MatcherInferer
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.ties import TOLERANCE

SIZE = (40, 64)  # H x W: three of eight rows of cells are padding
S, ROWS, COLUMNS = 8, 5, 8


def touched(mask: np.ndarray) -> list[tuple[int, int]]:
    cells = [(i, j) for i in range(ROWS) for j in range(COLUMNS)]
    return [(i, j) for i, j in cells if mask[i * S : (i + 1) * S, j * S : (j + 1) * S].any()]


@torch.no_grad()
def slow_matcher(network, reference, mask, target, count, sizes, merged) -> tuple[np.ndarray, list[list[float]]]:
    """Logits [H, W] and the points of the best prompt, from the paper with loops."""
    f_r, f_t = (network.encode(i[..., 0][None].as_tensor()) for i in (reference, target))
    cells = [(i, j) for i in range(ROWS) for j in range(COLUMNS)]
    a, b = ({c: e.features[0, :, c[0], c[1]].double().numpy() for c in cells} for e in (f_r, f_t))
    inside = touched(mask)

    def cosine(u, v):
        return u @ v / np.sqrt(u @ u * (v @ v))

    similarity = np.array([[cosine(a[r], b[t]) for t in cells] for r in inside])
    _, forward = linear_sum_assignment(np.round((1 - similarity) / TOLERANCE))
    found = sorted(cells[k] for k in forward)
    backward = np.array([[cosine(b[t], a[r]) for r in cells] for t in found])
    home = [
        t
        for t, k in zip(found, linear_sum_assignment(np.round((1 - backward) / TOLERANCE))[1], strict=True)
        if cells[k] in inside
    ]
    points = np.array([[j * S + 3.5, i * S + 3.5] for i, j in home])
    centres = points
    if len(points) > count:
        moved = points + np.random.default_rng(0).uniform(-0.01, 0.01, points.shape)
        members = KMeans(count, n_init=10, random_state=0).fit(moved).labels_
        centres = [points[members == k].mean(axis=0) for k in range(count)]
    centres = sorted(map(list, centres))
    candidates = []
    for size in range(sizes[0], sizes[1] + 1):
        for subset in combinations(centres, size):
            prompt = Prompt(torch.tensor(np.array(subset), dtype=torch.float32), torch.ones(size))
            logits = network.to_image(network.decode(f_t, [prompt])[0], f_t.size)[0, 0].numpy()
            members = touched(logits > 0)
            if not members:
                continue
            cost = np.array([[(1 - cosine(a[r], b[t])) / 2 for t in members] for r in inside])
            emd = ot.emd2(np.full(len(inside), 1 / len(inside)), np.full(len(members), 1 / len(members)), cost)
            hits = len(set(home) & set(members))
            score = 0.8 * (1 - emd) + 0.2 * hits / len(members) * hits / len(home)
            candidates.append((score, logits, prompt.points.tolist()))
    best = []
    while candidates:
        largest = max(c[0] for c in candidates)
        best += [c for c in candidates if c[0] >= largest - TOLERANCE]
        candidates = [c for c in candidates if c[0] < largest - TOLERANCE]
    return np.max([c[1] for c in best[:merged]], axis=0), best[0][2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 7])
def test_agrees_with_the_paper_done_slowly(make_loader, make_image, disc, tiny_network, seed):
    reference, target = make_image(1, (*SIZE, 1)), make_image(2, (*SIZE, 1))
    label, network = disc(SIZE, (18, 26), 12), tiny_network(seed)
    loader = make_loader({"a": (reference, label[..., None])}, {"lesion": 1})
    inferer = MatcherInferer({"lesion": 1}, loader, centres=5, sizes=(2, 3), merged=3)
    found, details = inferer.segment_case(target[None], network, "a", "a")
    found = found[0, 0, ..., 0].as_tensor()
    logits, points = slow_matcher(network, reference, label == 1, target, 5, (2, 3), 3)
    np.testing.assert_allclose(found, logits, atol=1e-4)
    np.testing.assert_allclose(np.array(details.rows[0]["points"])[:, :2], points, atol=1e-4)
