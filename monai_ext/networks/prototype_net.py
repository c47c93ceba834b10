"""APSCL's network (Huang et al. 2024): one annotated slice segments another, by prototypes of enriched features.

The way of an episode, each step in its module::

    images -> trunk f (networks/trunk.py) -> prior block -> z (networks/latent_block.py)
           -> f' = FEM(f, z) (networks/feature_enrichment.py)
    support f', mask -> Z_s, prototypes (prompts/prototypes.py, prompts/local_prototypes.py)
    query f' -> Z_q, guided by Z_s (networks/mutual_guidance.py) -> cosine to the prototypes -> scores

In training alone: masks -> label encoder -> posterior block, and SIM (networks/spatial_interaction.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_ext.errors import UserError
from monai_ext.networks.backbone import Embeddings
from monai_ext.networks.feature_enrichment import FeatureEnrichment
from monai_ext.networks.label_encoder import LabelEncoder
from monai_ext.networks.latent_block import Gaussian, LatentBlock
from monai_ext.networks.mutual_guidance import MutualGuidance
from monai_ext.networks.spatial_interaction import Projected, SpatialInteraction
from monai_ext.networks.state_dict import load_weights, read_checkpoint
from monai_ext.networks.trunk import Trunk, build_trunk
from monai_ext.networks.trunk_stages import LITE0
from monai_ext.prompts.local_prototypes import WINDOW, class_score, local_prototypes
from monai_ext.prompts.prototypes import SCALE, prototype
from monai_ext.prompts.shares import covered_share, sampled_share


@dataclass(frozen=True)
class PrototypeOptions:
    """What the network is made of: switches of the paper's ablation, and everything that the paper leaves open.

    Attributes:
        fem: feature enrichment, with its prior and posterior (Table 2: FEM).
        scl: spatial interaction for the contrast, of training alone (SCL).
        mgd: mutual guidance decoder (MGD). Without all three: masked average pooling and cosine, the baseline.
        latent: dimensions of z (Table 4: 32).
        hidden: widths of the prior's and posterior's linear layers.
        prior_pool: see :class:`LatentBlock`; None flattens all cells.
        label_encoder: ``small``, or ``trunk``: a second trunk, which starts with the same weights.
        fem_source: which z enriches features in training: ``prior``, z_x of the image, or ``posterior``, z_y of the
            mask. The paper says both; inference has z_x alone.
        fem_form: see :class:`FeatureEnrichment`.
        sim_width: see :class:`SpatialInteraction`.
        sim_values: see :class:`SpatialInteraction`.
        mgd_width: see :class:`MutualGuidance`.
        mgd_normalise: see :class:`MutualGuidance`.
        mgd_start: see :class:`MutualGuidance`.
        mgd_share: see :class:`MutualGuidance`.
        prototypes: ``global``: one a class, Eq. 11. ``local``: ALPNet's windows, and the global one of a class that
            fills none. ``both``: of the structure windows and the global one, of the background windows, as ALPNet.
        window: cells along one side of a window.
        mask_resize: masks are taken to the grid by ``bilinear`` sampling (ALPNet) or by ``area``.
        scale: factor of the cosine; Eq. 12 has none, and its softmax could not exceed 0.88.
    """

    fem: bool = True
    scl: bool = True
    mgd: bool = True
    latent: int = 32
    hidden: Sequence[int] = (512, 256)
    prior_pool: int | None = 8
    label_encoder: str = "small"
    fem_source: str = "prior"
    fem_form: str = "residual"
    sim_width: int = 256
    sim_values: str = "other"
    mgd_width: int = 256
    mgd_normalise: str = "softmax"
    mgd_start: str = "alike"
    mgd_share: str = "whole"
    prototypes: str = "global"
    window: int = WINDOW
    mask_resize: str = "bilinear"
    scale: float = SCALE

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r} is unknown: choose one of {', '.join(allowed)}.")


CHOICES = {
    "label_encoder": ("small", "trunk"),
    "fem_source": ("prior", "posterior"),
    "fem_form": ("residual", "printed"),
    "sim_values": ("other", "printed"),
    "mgd_normalise": ("softmax", "mean", "none"),
    "mgd_start": ("alike", "random"),
    "mgd_share": ("whole", "learned"),
    "prototypes": ("global", "local", "both"),
    "mask_resize": ("bilinear", "area"),
}
"""Values that options with a choice may have."""


@dataclass(frozen=True)
class Branch:
    """Images on their way through the network.

    Attributes:
        features: f', [B, C, g, g].
        prior: of z_x; None without FEM.
        posterior: of z_y, of as many images as their masks were asked for; None without FEM, and where no mask was
            given.
    """

    features: Tensor
    prior: Gaussian | None
    posterior: Gaussian | None

    def __getitem__(self, part: slice) -> Branch:
        """Return some of the images."""
        prior, posterior = (
            None if one is None else Gaussian(one.mean[part], one.log_variance[part])
            for one in (self.prior, self.posterior)
        )
        return Branch(self.features[part], prior, posterior)

    def halves(self) -> tuple[Branch, Branch]:
        """Divide images, of which the supports come first, into supports and queries."""
        priors, posteriors = (
            (None, None) if one is None else tuple(map(Gaussian, one.mean.chunk(2), one.log_variance.chunk(2)))
            for one in (self.prior, self.posterior)
        )
        first, second = map(Branch, self.features.chunk(2), priors, posteriors)
        return first, second


class Support(NamedTuple):
    """What a query is compared with.

    Attributes:
        foreground: [n, E1] prototypes of the structure.
        background: [m, E1] of all else.
        guide: Z_s, [E1, g, g]; None without MGD.
    """

    foreground: Tensor
    background: Tensor
    guide: Tensor | None


@dataclass(frozen=True)
class Episode:
    """What the network makes of B episodes of one support and one query each.

    Attributes:
        scores: [B, 2, g, g] of the queries: background, structure; arguments of the softmax of Eq. 12. Of fewer
            episodes where fewer were to be segmented.
        supports: B images.
        queries: B images.
        support_shares: [B, g, g] share of each cell that the support's mask covers.
        query_shares: likewise of the query's mask; None where it was not given.
        support_valid: [B, g, g] share of each cell of the supports that counts.
        query_valid: likewise of the queries.
    """

    scores: Tensor
    supports: Branch
    queries: Branch
    support_shares: Tensor
    query_shares: Tensor | None
    support_valid: Tensor
    query_valid: Tensor


class PrototypeNet(nn.Module):
    """APSCL's network over any trunk; an :class:`monai_ext.networks.backbone.Encoder` too, with the trunk's features.

    Args:
        trunk: makes features [B, C, g, g] of images.
        options: see :class:`PrototypeOptions`.
        auxiliary: build what only training needs, too: label encoder, posterior block and SIM.

    Example:
        >>> network = PrototypeNet(build_trunk("tf_efficientnet_lite0"))
        >>> episode = network.run_episodes(support, support_mask, query)  # [B, 1, H, W], [B, H, W], [B, 1, H, W]
        >>> logits = network.to_image(episode.scores, (256, 256))  # [B, 2, 256, 256]
    """

    def __init__(self, trunk: Trunk, options: PrototypeOptions | None = None, auxiliary: bool = True) -> None:
        super().__init__()
        self.trunk, self.options = trunk, options or PrototypeOptions()
        o, channels = self.options, trunk.channels
        self.prior = self.enrichment = self.label_encoder = self.posterior = None
        self.interaction: SpatialInteraction | None = None
        self.guidance: MutualGuidance | None = None
        if o.fem:
            self.prior = LatentBlock(channels, trunk.grid, o.latent, o.hidden, o.prior_pool)
            self.enrichment = FeatureEnrichment(channels, o.latent, o.fem_form)
        if o.fem and auxiliary:
            self.label_encoder = LabelEncoder(channels) if o.label_encoder == "small" else _MaskTrunk(trunk)
            self.posterior = LatentBlock(channels, trunk.grid, o.latent, o.hidden, o.prior_pool)
        if o.scl and auxiliary:
            self.interaction = SpatialInteraction(channels, o.sim_width, o.sim_values)
        if o.mgd:
            self.guidance = MutualGuidance(channels, o.mgd_width, o.mgd_normalise, o.mgd_start, o.mgd_share)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.trunk.device

    @property
    def image_size(self) -> int:
        """Side S of the padded square in pixels."""
        return self.trunk.image_size

    @property
    def grid(self) -> int:
        """Number g of cells along one side of the square."""
        return self.trunk.grid

    @property
    def stride(self) -> int:
        """Input-frame pixels along one side of a cell."""
        return self.trunk.stride

    def forward(self, *_: Tensor) -> Tensor:
        """Refuse to segment an image alone, as MONAI's verify and export verbs ask for.

        Raises:
            UserError: always; :meth:`make_support` and :meth:`compare` segment a query.
        """
        raise UserError(
            "this network segments an image only with a support, an annotated slice of another patient: use the "
            "inferer of its bundle (python -m monai.bundle run)."
        )

    def encode(self, images: Tensor) -> Embeddings:
        """Run the trunk: images [B, 1 or 3, H, W] in [0, 255] -> the features f.

        The rest of the square is black, as in the episodes that the network learns from.
        """
        height, width = images.shape[-2:]
        room = (0, max(self.image_size - width, 0), 0, max(self.image_size - height, 0))
        features = self.trunk.encode(nn.functional.pad(images, room)).features
        return Embeddings(features, (height, width))

    def to_image(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Map maps [K, M, g, g] of the padded square back to the input frame: [K, M, H, W] (bilinear)."""
        return self.trunk.to_image(logits, size)

    def encoder_state(self) -> Mapping[str, Tensor]:
        """Return all tensors that make an embedding, by name."""
        return self.trunk.encoder_state()

    def inference_state(self) -> dict[str, Tensor]:
        """Return the weights that inference needs: a state dict of the network built with ``auxiliary=False``."""
        left_out = ("label_encoder.", "posterior.", "interaction.")
        return {name: value for name, value in self.state_dict().items() if not name.startswith(left_out)}

    def shares(self, masks: Tensor) -> Tensor:
        """Take masks [K, H, W] of the input frame to the grid: [K, g, g] in [0, 1]; see ``mask_resize``."""
        resize = sampled_share if self.options.mask_resize == "bilinear" else covered_share
        return resize(masks.to(self.device), self.stride, (self.grid, self.grid))

    def valid_share(self, size: tuple[int, int]) -> Tensor:
        """Return the share of each cell that images of (H, W) cover, [g, g]: padding is neither class."""
        return self._covered(torch.ones(1, *size))[0]

    def encode_masks(self, masks: Tensor) -> Gaussian | None:
        """Return the posteriors of z_y of masks [B, H, W], in training alone; None without FEM or ``auxiliary``."""
        if self.posterior is None or self.label_encoder is None:
            return None
        return self.posterior(self.label_encoder(self._padded(masks)))

    def enrich(
        self,
        features: Tensor,
        posterior: Gaussian | None = None,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> Branch:
        """Enrich the trunk's features by the anatomical prior (Eq. 2).

        Args:
            features: f, [B, C, g, g].
            posterior: of :meth:`encode_masks`, in training alone; of all B images for ``fem_source: posterior``.
            sample: draw z; otherwise z is the mean. None: in training mode alone (for inference the paper is silent).
            generator: of the noise of z, on the CPU.
        """
        if self.prior is None or self.enrichment is None:
            return Branch(features, None, None)
        prior = self.prior(features)
        source = posterior if posterior is not None and self.options.fem_source == "posterior" else prior
        drawn = self.training if sample is None else sample
        z = source.sample(generator) if drawn else source.mean
        return Branch(self.enrichment(features, z), prior, posterior)

    def make_support(self, features: Tensor, shares: Tensor, valid: Tensor) -> Support | None:
        """Make the prototypes of one structure from K supports (Eq. 11).

        The paper leaves the background out of the classes, but a softmax over one class is constant: the background has
        prototypes of its own, of all that is not the structure.

        Args:
            features: f', [K, C, g, g].
            shares: [K, g, g] of :meth:`shares`.
            valid: [g, g] of :meth:`valid_share`, or [K, g, g]; what is neither structure nor valid belongs to no class.

        Returns:
            None where no support shows the structure, or one shows nothing else.
        """
        z = features if self.guidance is None else self.guidance.support(features)
        foreground = self._prototypes(z, shares, self.options.prototypes == "both")
        background = self._prototypes(z, (valid - shares).clamp(min=0), False)
        if foreground is None or background is None:
            return None
        return Support(foreground, background, None if self.guidance is None else z.mean(dim=0))

    def guided(self, features: Tensor, support: Support) -> Tensor:
        """Embed a query as it is compared: f' [C, g, g] -> Z_q reweighted (Eqs. 9 and 10), [E1, g, g]."""
        if self.guidance is None or support.guide is None:
            return features
        return self.guidance(self.guidance.query(features[None])[0], support.guide)

    def compare(self, features: Tensor, support: Support) -> Tensor:
        """Compare a query with the prototypes (Eq. 12): f' [C, g, g] -> [2, g, g], background first."""
        z = self.guided(features, support)
        classes = (support.background, support.foreground)
        return torch.stack([class_score(prototypes, z, self.options.scale) for prototypes in classes])

    def run_episodes(
        self,
        support_images: Tensor,
        support_masks: Tensor,
        query_images: Tensor,
        query_masks: Tensor | None = None,
        support_valid: Tensor | None = None,
        query_valid: Tensor | None = None,
        generator: torch.Generator | None = None,
        segmented: int | None = None,
        with_posteriors: bool = True,
    ) -> Episode:
        """Run B episodes of one support and one query; masks of queries are for the losses alone.

        Args:
            support_images: [B, 1 or 3, H, W] in [0, 255].
            support_masks: [B, H, W], 1 where the structure is.
            query_images: as the supports.
            query_masks: as those of the supports; None: no posterior.
            support_valid: [B, H, W], where images and masks are known; None: everywhere.
            query_valid: likewise of the queries.
            generator: of the noise of z, on the CPU; see :meth:`enrich`.
            segmented: the first so many episodes are segmented and have posteriors; of the others, which only the
                contrast needs, there are the features. None: all.
            with_posteriors: False where no loss needs them; features that z_y enriches have them all the same.

        Raises:
            ValueError: a support shows no structure, or nothing else.
        """
        count = len(support_images)
        first = count if segmented is None else segmented
        images = torch.cat([support_images, query_images])
        features, posterior, by_mask = self.encode(images).features, None, self.options.fem_source == "posterior"
        if query_masks is not None and (with_posteriors or by_mask):
            known = count if by_mask else first
            posterior = self.encode_masks(torch.cat([support_masks[:known], query_masks[:known]]))
        supports, queries = self.enrich(features, posterior, generator=generator).halves()
        shares = self.shares(support_masks)
        everywhere = self.valid_share((images.shape[-2], images.shape[-1])).expand(count, -1, -1)
        valid = [everywhere if v is None else self._covered(v) for v in (support_valid, query_valid)]
        scores = [
            self._segment(supports.features[k], shares[k], queries.features[k], valid[0][k], k) for k in range(first)
        ]
        own = None if query_masks is None else self.shares(query_masks)
        return Episode(torch.stack(scores), supports, queries, shares, own, *valid)

    def project(self, episode: Episode) -> tuple[Projected, Tensor]:
        """Prepare all images of the episodes, supports first, for :meth:`relevance`.

        Returns:
            What SIM compares, of 2 B images, and the shares of their masks, [2 B, g * g].

        Raises:
            ValueError: the network was built without SIM, or the episodes had no query masks.
        """
        if self.interaction is None or episode.query_shares is None:
            raise ValueError("the contrast needs scl, auxiliary and the masks of the queries")
        features = torch.cat([episode.supports.features, episode.queries.features])
        shares = torch.cat([episode.support_shares, episode.query_shares])
        return self.interaction(features), shares.flatten(1)

    def relevance(self, images: Projected, shares: Tensor, anchors: int | None = None) -> Tensor:
        """Compare images by SIM; see :meth:`SpatialInteraction.relevance`.

        Raises:
            ValueError: the network was built without it.
        """
        if self.interaction is None:
            raise ValueError("the network was built without spatial interaction")
        return self.interaction.relevance(images, shares, anchors)

    def align(self, episode: Episode) -> list[Tensor | None]:
        """Segment each support by the query as it was segmented (PANet, Wang et al. 2019, §3.4), for its loss.

        Not part of APSCL: the rival PANet's prototype alignment regularisation, its loss being the cross-entropy of
        these scores and the support's mask.

        Returns:
            Scores [2, g, g] of each support, background first; None where the query was all one class.
        """
        known = episode.query_valid[: len(episode.scores)]
        predicted = (episode.scores.argmax(dim=1).detach() * known).to(episode.scores.dtype)
        aligned = []
        for k, shares in enumerate(predicted):
            turned = self.make_support(episode.queries.features[k : k + 1], shares[None], episode.query_valid[k])
            aligned.append(None if turned is None else self.compare(episode.supports.features[k], turned))
        return aligned

    def _segment(self, support: Tensor, shares: Tensor, query: Tensor, valid: Tensor, k: int) -> Tensor:
        made = self.make_support(support[None], shares[None], valid)
        if made is None:
            raise ValueError(f"the support of episode {k} shows no structure, or nothing else")
        return self.compare(query, made)

    def _prototypes(self, features: Tensor, weights: Tensor, with_global: bool) -> Tensor | None:
        """Make the prototypes of one class from K supports; None where it covers nothing."""
        found = [prototype(f, w) for f, w in zip(features, weights, strict=True)]
        given = [one for one in found if one is not None]
        if not given:
            return None
        mean = torch.stack(given).mean(dim=0)[None]
        if self.options.prototypes == "global":
            return mean
        windows = [local_prototypes(f, w, self.options.window) for f, w in zip(features, weights, strict=True)]
        local = torch.cat(windows)
        return torch.cat([local, mean]) if with_global or not len(local) else local

    def _covered(self, masks: Tensor) -> Tensor:
        return covered_share(masks.to(self.device), self.stride, (self.grid, self.grid))

    def _padded(self, masks: Tensor) -> Tensor:
        height, width = masks.shape[-2:]
        padding = (0, self.image_size - width, 0, self.image_size - height)
        return nn.functional.pad(masks[:, None].to(self.device, torch.float32), padding)


class _MaskTrunk(nn.Module):
    """A second trunk as the label encoder: a mask as a black and white picture."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = deepcopy(trunk)

    def forward(self, masks: Tensor) -> Tensor:
        return self.trunk(self.trunk.preprocess(255 * masks))


def build_prototype_net(
    trunk: str = LITE0,
    trunk_weights: str | None = None,
    checkpoint: str | os.PathLike | None = None,
    image_size: int = 256,
    channels: int = 256,
    auxiliary: bool = False,
    frozen_statistics: bool = True,
    options: Mapping[str, Any] | None = None,
) -> PrototypeNet:
    """Build the network with its weights.

    Args:
        trunk: see :func:`monai_ext.networks.trunk.build_trunk`.
        trunk_weights: weights that a training starts from, see there.
        checkpoint: a plain state dict of the whole network: :meth:`PrototypeNet.inference_state`, or with
            ``auxiliary`` its full state dict. None leaves all but the trunk random.
        image_size: side of the padded square in pixels.
        channels: of the features that are compared.
        auxiliary: see :class:`PrototypeNet`.
        frozen_statistics: see :class:`monai_ext.networks.trunk.Trunk`.
        options: see :class:`PrototypeOptions`; what is not named has its default.

    Raises:
        UserError: for an unknown trunk or option, or weights of another network.
    """
    names = PrototypeOptions.__dataclass_fields__
    for name in options or {}:
        if name not in names:
            raise UserError(f"option {name!r} of the network is unknown: choose among {', '.join(names)}.")
    chosen = PrototypeOptions(**(options or {}))
    try:
        built = build_trunk(trunk, trunk_weights, image_size, channels, frozen_statistics=frozen_statistics)
    except UserError as error:
        known = None if checkpoint is None else _recognise(read_checkpoint(Path(checkpoint), trunk))
        if known is None:
            raise
        raise UserError(f"checkpoint {checkpoint} is of another network: {known}") from error
    network = PrototypeNet(built, chosen, auxiliary)
    if checkpoint is not None:
        load_weights(network, checkpoint, trunk, "--trunk", _recognise)
    return network.eval()


def _recognise(state: Mapping[str, Any]) -> str | None:
    """Return a guess of what network weights that do not fit are of."""
    names = [str(name) for name in state]
    if any(name.startswith("mask_decoder.") for name in names):
        return "they are those of a SAM: give the checkpoint of a few-shot network (bundle apscl)."
    if not any(name.startswith("trunk.stages.") for name in names):
        return None
    resnet = any(name.startswith("trunk.stages.4.") and ".downsample." in name for name in names)
    kind = "a ResNet" if resnet else "a network of timm"
    return f"their trunk is {kind}, of these sizes and options: give --trunk and the network's options as trained."
