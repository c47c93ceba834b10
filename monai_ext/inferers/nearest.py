"""Which of a patient's annotated images looks most like the target: chosen from the images alone, without any label.

The paper has one reference. Measure chosen here: the cosine distance of mean features, averaged over slices.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from monai_ext.inferers.encoding import encode_slice
from monai_ext.inferers.reference import Reference
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.masks import valid_cells
from monai_ext.prompts.ties import TOLERANCE


def mean_feature(network: PromptableNetwork, embeddings: Embeddings) -> Tensor:
    """Average the features of the cells that hold image, [C]."""
    valid = valid_cells(embeddings.size, network.stride, (network.grid, network.grid))
    return embeddings.features[0][:, valid.to(embeddings.features.device)].float().mean(dim=1)


def reference_distances(
    network: PromptableNetwork,
    image: Tensor,
    references: Sequence[Reference],
    matches: Sequence[Sequence[int | None]],
    frame: tuple[int, int] | None = None,
) -> list[float]:
    r"""Distance of a target to each reference.

    .. math:: D(T, R) = \frac{1}{|K|} \sum_{k \in K} 1 - \cos(\bar F_T(k), \bar F_R(m(k)))

    over the slices K of the target that have a matched slice m(k) on the reference; bars are means over the cells
    that hold image. Slices of the target are encoded for this, once more than for segmenting them.

    Args:
        network: whose features are compared.
        image: [C, H, W, D] in the input frame.
        references: candidates.
        matches: of each, for each slice of the target, its slice or None; see
            :func:`monai_ext.inferers.slice_match.match_slices`.
        frame: rows and columns of the frame that the slices lie in; None: their own.

    Returns:
        One distance in [0, 2] a reference, infinite where no slice has a match.
    """
    own: dict[int, Tensor] = {}
    distances = []
    for reference, match in zip(references, matches, strict=True):
        found = []
        for k, index in enumerate(match):
            if index is None:
                continue
            if k not in own:
                own[k] = mean_feature(network, encode_slice(network, image[..., k], frame))
            theirs = mean_feature(network, reference.embed(network, index))
            found.append(1 - float(F.cosine_similarity(own[k], theirs, dim=0)))
        distances.append(sum(found) / len(found) if found else float("inf"))
    return distances


def nearest_reference(
    network: PromptableNetwork,
    image: Tensor,
    references: Sequence[Reference],
    matches: Sequence[Sequence[int | None]],
    frame: tuple[int, int] | None = None,
) -> int:
    """Return the number of the nearest reference by :func:`reference_distances`.

    Of equally near ones (:mod:`monai_ext.prompts.ties`) the latest, not the first: it is nearer in time.
    """
    distances = reference_distances(network, image, references, matches, frame)
    limit = min(distances) + TOLERANCE
    return max(number for number, distance in enumerate(distances) if distance <= limit)
