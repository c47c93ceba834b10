"""Part-level features of a reference (P²SAM §3.2, Eq. 1): features below a mask, clustered by k-means++."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.nn import functional as F

from monai_ext.prompts.ties import TOLERANCE


def foreground_features(features: Tensor, mask: Tensor) -> Tensor:
    """Select F_R^f = {F_Rij | M_Rij = 1} (Eq. 1); with the background's mask, F_R^b.

    Args:
        features: ``[C, g, g]`` of the encoder.
        mask: ``[g, g]`` bool.

    Returns:
        Tokens ``[n, C]``, row by row.
    """
    return features[:, mask].T


def part_sets(tokens: Tensor, counts: Sequence[int], seed: int = 0, n_init: int = 10) -> dict[int, Tensor]:
    """Cluster raw tokens into each of several numbers of parts and average each part: {P_R^c}, c = 1..n.

    The mean is not normalised; the cosine of Eq. 2 does not see the difference. ``n_init`` is written out because
    scikit-learn's own default fell from 10 (what the authors ran) to 1.

    Args:
        tokens: ``[n, C]``.
        counts: numbers of parts to try; 1 gives the plain mean.
        seed: of k-means++.
        n_init: restarts, of which the one with the least inertia is kept.

    Returns:
        Number of parts -> ``[number, C]`` float32 in the order of the clusters, on the tokens' device. Counts above the
        number of distinct tokens are left out, as in the authors' code; with no tokens at all nothing is left. Tokens
        that differ by rounding (:data:`~monai_ext.prompts.ties.TOLERANCE` of their mean length) are not distinct.
    """
    sets = {count: _cluster_means(tokens, count, seed, n_init) for count in counts}
    return {count: parts for count, parts in sets.items() if parts is not None}


def _cluster_means(tokens: Tensor, n_parts: int, seed: int, n_init: int) -> Tensor | None:
    if n_parts < 1:
        raise ValueError(f"the number of parts must be at least 1, got {n_parts}")
    if len(tokens) < n_parts:
        return None
    tokens = tokens.detach().float()
    if n_parts == 1:
        return tokens.mean(dim=0, keepdim=True)
    members = cluster(tokens.cpu().numpy(), n_parts, seed, n_init)
    if len(np.unique(members)) < n_parts:
        return None
    labels = torch.from_numpy(members).to(tokens.device)
    parts = torch.stack([tokens[labels == part].mean(dim=0) for part in range(n_parts)])
    least = TOLERANCE * tokens.norm(dim=1).mean()  # tokens that are equal but for rounding are not divided
    return None if bool((F.pdist(parts) <= least).any()) else parts


def cluster(tokens: np.ndarray, n_parts: int, seed: int = 0, n_init: int = 10) -> np.ndarray:
    """Number the cluster of each token by k-means++: ``[n, C]`` -> ``[n]``; see :func:`part_sets`."""
    kmeans = KMeans(n_parts, init="k-means++", n_init=n_init, random_state=seed)
    # scikit-learn warns where tokens repeat and clusters stay empty: the caller sees that from the labels
    with _thread_pools().limit(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kmeans.fit(tokens).labels_


@cache
def _thread_pools() -> ThreadpoolController:
    # k-means and torch fight for the cores: seconds become minutes. Finding the pools takes 10 ms, so once.
    return ThreadpoolController()
