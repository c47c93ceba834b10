"""ProSAM's prompt encoder: an annotated reference and a target in, a distribution of prompts for a frozen SAM out.

VRP-SAM's layout (Sun et al. 2024; ProSAM §3.2 and §8), with two linear layers behind it that give a mean and a log
standard deviation for each number of each prompt (ProSAM §4.2). Step of the paper -> code:

* features of target and masked reference     -> :mod:`monai_ext.networks.reference_encoder`
* pseudo mask of the target                   -> :func:`monai_ext.prompts.pseudo_mask.pseudo_mask`
* reduction, prototype, merging               -> :meth:`PromptDistributionNet.enhance`
* queries and attention                       -> :mod:`monai_ext.networks.prompt_attention`
* mean and log standard deviation             -> :meth:`PromptDistributionNet.to_distribution`
* draws (Eq. 7)                               -> :mod:`monai_ext.prompts.distribution`

The paper calls the second layer's output a log standard deviation (§5.1), a standard deviation (§8.2) and a variance
(§10.2); it is the first here, which needs no constraint. Images are padded to a square, as SAM's are, where VRP-SAM
squashes them to 512 x 512. Both layers have a bias and start as torch starts them, of which the paper says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_ext.errors import UserError
from monai_ext.networks.prompt_attention import PromptTransformer
from monai_ext.networks.reference_encoder import EncoderReference, ReferenceEncoder, ReferenceFeatures, TrunkReference
from monai_ext.prompts.annotations import check_downsampling, downsample
from monai_ext.prompts.distribution import PromptDistribution, Sampler
from monai_ext.prompts.pseudo_mask import masked_mean, pseudo_mask

HIDDEN = 256
"""Width of the features that are compared (VRP-SAM)."""
HEADS = 4
"""Of each attention (VRP-SAM)."""
MASK_GAIN = 10.0
"""Factor of masks among the features they are merged with (VRP-SAM)."""


class PromptDistributionNet(nn.Module):
    """Predict a distribution of prompts from one annotated reference.

    With ``sampler`` ``none`` this is VRP-SAM's prompt encoder: the prompts are the transformer's outputs.

    Args:
        reference: the frozen encoder; a trunk's weights are kept among this module's.
        channels: C of SAM's prompts.
        prompts: number N of prompts.
        hidden: width of the features; None: 256, or C with the sampler ``none``, which has no layer between them.
        sampler: how prompts are drawn, and whether there is anything to draw from.
        two_linear: two linear layers in a row behind VRP-SAM's transformer, which the paper compares with (Table 9);
            only with the sampler ``none``.
        sigma_min: lower bound of the standard deviation: no term of the loss keeps it up.
        fixed_sigma: standard deviation of all numbers, which is then not learned; None: it is.
        dropout: of whole channels of the reduced features (VRP-SAM).
        mask_downsample: how an annotation reaches the grid, see :func:`monai_ext.prompts.annotations.downsample`;
            VRP-SAM's is ``nearest``.

    Raises:
        UserError: for options that do not go together.

    Example:
        >>> net = PromptDistributionNet(TrunkReference(build_trunk("tf_efficientnet_lite0")), channels=128)
        >>> net(net.features(image, 256), net.features(reference, 256), mask).mean.shape  # [1, 50, 128]
    """

    def __init__(
        self,
        reference: TrunkReference | EncoderReference | ReferenceEncoder,
        channels: int = 256,
        prompts: int = 50,
        hidden: int | None = None,
        sampler: Sampler | None = None,
        two_linear: bool = False,
        sigma_min: float = 0.0,
        fixed_sigma: float | None = None,
        dropout: float = 0.5,
        mask_downsample: str = "max",
    ) -> None:
        super().__init__()
        self.sampler = Sampler() if sampler is None else sampler
        learned = self.sampler.name != "none"
        hidden = hidden or (HIDDEN if learned or two_linear else channels)
        _check(self.sampler, channels, hidden, two_linear, sigma_min, fixed_sigma)
        check_downsampling(mask_downsample)
        self.reference, self.channels, self.prompts = reference, channels, prompts
        self.sigma_min, self.fixed_sigma, self.mask_downsample = sigma_min, fixed_sigma, mask_downsample
        self.reduce = nn.Sequential(
            nn.Conv2d(reference.middle_channels, hidden, 1, bias=False), nn.ReLU(), nn.Dropout2d(dropout)
        )
        self.merge = nn.Sequential(nn.Conv2d(2 * hidden + 1, hidden, 1, bias=False), nn.ReLU())
        self.transformer = PromptTransformer(hidden, prompts, HEADS)
        self.to_mean: nn.Module = nn.Identity()
        self.to_log_std: nn.Linear | None = None
        if two_linear:
            self.to_mean = nn.Sequential(nn.Linear(hidden, channels), nn.Linear(channels, channels))
        elif learned:
            self.to_mean = nn.Linear(hidden, channels)
            self.to_log_std = nn.Linear(hidden, channels) if fixed_sigma is None else None

    def features(self, images: Tensor, side: int) -> ReferenceFeatures:
        """Make features of references or targets; see :class:`ReferenceEncoder`. They never change: cache them."""
        return self.reference.features(images, side)

    def masks(self, annotation: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Bring annotations to the grids of the features.

        Args:
            annotation: [B, H, W] bool or floating, in the input frame.
            side: pixels of the square that it lies in.

        Returns:
            [B, 1, g, g] and [B, 1, h, h], for the middle features and for those before the last stage.

        Raises:
            UserError: an annotation is empty, or nothing of it is left.
        """
        grids = (self.reference.grid, self.reference.deep_grid)
        cells = [downsample(annotation, side, grid, self.mask_downsample)[:, None] for grid in grids]
        return cells[0], cells[1]

    def forward(
        self, query: ReferenceFeatures, support: ReferenceFeatures, masks: tuple[Tensor, Tensor]
    ) -> PromptDistribution:
        """Predict the prompts of B targets from as many references.

        Args:
            query: features of the targets.
            support: features of the references.
            masks: of the references, see :meth:`masks`.

        Returns:
            N prompts a target.
        """
        support_features, query_features = self.enhance(query, support, masks)
        return self.to_distribution(self.transformer(support_features, query_features))

    def enhance(
        self, query: ReferenceFeatures, support: ReferenceFeatures, masks: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Merge reduced features with the reference's prototype and a mask: of the support, of the query."""
        mask, deep_mask = masks
        prior = self.prior(query, support, mask, deep_mask)
        reduced_query, reduced_support = self.reduce(query.middle), self.reduce(support.middle)
        prototype = masked_mean(reduced_support, mask)
        tiled = prototype.expand_as(reduced_support)
        return (
            self.merge(torch.cat([reduced_support, tiled, MASK_GAIN * mask], dim=1)),
            self.merge(torch.cat([reduced_query, tiled, MASK_GAIN * prior], dim=1)),
        )

    @torch.no_grad()
    def prior(self, query: ReferenceFeatures, support: ReferenceFeatures, mask: Tensor, deep_mask: Tensor) -> Tensor:
        """Return the pseudo mask [B, 1, g, g] of the targets; the background goes before the last stage."""
        of_support = self.reference.last_stage(support.deep * deep_mask)
        return pseudo_mask(self.reference.last_stage(query.deep), of_support, mask)

    def to_distribution(self, tokens: Tensor) -> PromptDistribution:
        """Turn the transformer's outputs [B, N, hidden] into a distribution of prompts."""
        mean = self.to_mean(tokens)
        if self.fixed_sigma is not None:
            return PromptDistribution(mean, torch.full_like(mean, self.fixed_sigma))
        if self.to_log_std is None:
            return PromptDistribution(mean)
        return PromptDistribution(mean, self.to_log_std(tokens).exp().clamp(min=self.sigma_min))

    @property
    def is_certain(self) -> bool:
        """Whether all draws are the mean: VRP-SAM, or a fixed sigma of 0."""
        return self.sampler.name == "none" or self.fixed_sigma == 0

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that learn."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def effective_std(self, prompts: PromptDistribution) -> Tensor:
        """Return the standard deviation of the draws, over all prompts and numbers of a target: [B].

        The heads' own sigma differs from it by a factor that depends on the sampler.
        """
        if prompts.std is None:
            return prompts.mean.new_zeros(len(prompts.mean))
        factor = self.sampler.std_factor(prompts.prompts_of_a_shot, prompts.mean.shape[-1])
        return factor * prompts.std.detach().square().mean(dim=(1, 2)).sqrt()


def join_shots(shots: Sequence[PromptDistribution]) -> PromptDistribution:
    """Put the prompts from several references behind one another (VRP-SAM: 5 references, 250 prompts)."""
    stds = [shot.std for shot in shots if shot.std is not None]
    mean, std = torch.cat([shot.mean for shot in shots], dim=1), torch.cat(stds, dim=1) if stds else None
    return PromptDistribution(mean, std, len(shots))


def _check(
    sampler: Sampler, channels: int, hidden: int, two_linear: bool, sigma_min: float, fixed_sigma: float | None
) -> None:
    none = sampler.name == "none"
    if hidden % HEADS or hidden % 4:
        raise UserError(f"--hidden is {hidden}: give a multiple of 4.")
    if two_linear and not none:
        raise UserError("--two_linear true is a control of VRP-SAM: set --sampler none with it.")
    if none and not two_linear and hidden != channels:
        raise UserError(f"--sampler none has no layer from {hidden} to SAM's {channels} channels: set --hidden null.")
    if none and fixed_sigma is not None:
        raise UserError("--fixed_sigma has no effect with --sampler none: leave it out.")
    if sigma_min < 0 or (fixed_sigma is not None and fixed_sigma < 0):
        raise UserError("--sigma_min and --fixed_sigma are standard deviations: give 0 or more.")
