"""The dual-branch U-Net of scribble supervision: one encoder, two decoders (DMPLS, Luo et al. 2022; SAM-SP).

Step of the paper -> code:

* UNet_CCT, the network of DMPLS                      -> ``architecture="plain"``, 2,708,184 parameters for 4 classes
* dropout before each block of one branch (appendix)  -> :meth:`DualBranchUNet._perturb`, on the features of ``aux``
* independent CSF modules at all skip connections     -> :class:`SkipFusion`, one a skip and branch
* output convolution after the two decoders           -> ``joint_output``
* GPM, in the authors' code alone                     -> :class:`GlobalPrior`, off by default

Shapes: images [B, 1, H, W] with H and W multiples of 16, class logits [B, K + 1, H, W] with channel 0 for background.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.networks.prelu import SingleSlopePReLU
from monai_ext.networks.state_dict import load_weights

CHANNELS = (16, 32, 64, 128, 256)
ENCODER_DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5)
STRIDE = 16
"""H and W of the images are multiples of this."""

ARCHITECTURES = {
    "sam_sp": {"skip_fusion": "csf", "joint_output": True, "activation": "prelu"},
    "plain": {"skip_fusion": "none", "joint_output": False, "activation": "leaky_relu"},
}
"""SAM-SP's segmentor, and DMPLS's UNet_CCT."""

_ACTIVATIONS = {"prelu": SingleSlopePReLU, "leaky_relu": nn.LeakyReLU}


@dataclass(frozen=True)
class BranchOutputs:
    """What a training step needs of one pass.

    Attributes:
        out: [B, K + 1, H, W] logits that inference uses: of both decoders together, or ``main``.
        main: [B, K + 1, H, W] logits of the main decoder.
        aux: [B, K + 1, H, W] logits of the perturbed decoder.
        latent: [B, 256, H / 16, W / 16], the deepest features, for the semantic alignment.
    """

    out: Tensor
    main: Tensor
    aux: Tensor
    latent: Tensor


def conv_block(inputs: int, outputs: int, dropout: float, activation: str) -> nn.Sequential:
    """Convolution, batch norm, activation, dropout, and the first three again."""
    act = _ACTIVATIONS[activation]
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        act(),
        nn.Dropout(dropout),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        act(),
    )


class Encoder(nn.Module):
    """Five blocks with max-pooling between: [B, C, H, W] -> features at 1, 1/2, 1/4, 1/8, 1/16 of the size."""

    def __init__(self, in_channels: int, activation: str) -> None:
        super().__init__()
        widths = [in_channels, *CHANNELS]
        self.blocks = nn.ModuleList(
            conv_block(widths[i], widths[i + 1], ENCODER_DROPOUT[i], activation) for i in range(len(CHANNELS))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features x0 to x4, shallow first."""
        features = [self.blocks[0](image)]
        for block in list(self.blocks)[1:]:
            features.append(block(F.max_pool2d(features[-1], 2)))
        return features


class Decoder(nn.Module):
    """Transposed convolutions, skips concatenated: features x0 to x4 -> [B, 16, H, W]."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        pairs = list(zip(CHANNELS[:0:-1], CHANNELS[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, shallow, 2, stride=2) for deep, shallow in pairs)
        self.blocks = nn.ModuleList(conv_block(2 * shallow, shallow, 0.0, activation) for _, shallow in pairs)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        for up, block, skip in zip(self.up, self.blocks, reversed(features[:-1]), strict=True):
            x = block(torch.cat([skip, up(x)], dim=1))
        return x


class ChannelSpatialAttention(nn.Module):
    """CBAM (Woo et al. 2018): channel attention by a shared MLP of ratio 16, then spatial attention (7 x 7)."""

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(pooled)
        maps = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.spatial(maps))


class SkipFusion(nn.Module):
    """CSF at one skip of one branch: the skip is fused with the deeper fused map, under attention.

    The appendix names the module and its places; what it computes follows the authors' code.

    Args:
        channels: C of the skip; the deeper map has 2C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fuse = nn.Sequential(
            nn.Conv2d(3 * channels, channels, 3, padding=1), nn.BatchNorm2d(channels), SingleSlopePReLU()
        )
        self.attention = ChannelSpatialAttention(channels)
        self.output = nn.Sequential(nn.Conv2d(2 * channels, channels, 1), nn.BatchNorm2d(channels), SingleSlopePReLU())

    def forward(self, skip: Tensor, deeper: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            skip: [B, C, h, w].
            deeper: [B, 2C, h / 2, w / 2], the fused map of the next deeper level, or x4.

        Returns:
            The fused map for the next shallower level, and what goes to the decoder, both [B, C, h, w].
        """
        up = F.interpolate(deeper, skip.shape[-2:], mode="bilinear", align_corners=True)
        fused = self.attention(self.fuse(torch.cat([skip, up], dim=1)))
        return fused, self.output(torch.cat([fused, skip], dim=1))


class GlobalPrior(nn.Module):
    """GPM of the authors' code (not in the paper's appendix): one map that weighs the deepest features.

    Atrous pooling (1 x 1; 3 x 3 at dilation 6, 12, 18; the mean; depth 128), a 3 x 3 convolution to 256 channels,
    position attention, one channel.
    """

    def __init__(self, channels: int = CHANNELS[-1], depth: int = 128) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [nn.Conv2d(channels, depth, 1)]
            + [nn.Conv2d(channels, depth, 3, padding=rate, dilation=rate) for rate in (6, 12, 18)]
        )
        self.pooled = nn.Conv2d(channels, depth, 1)
        self.project = nn.Conv2d(5 * depth, 256, 3, padding=1)
        self.query, self.key, self.value = nn.Conv2d(256, 32, 1), nn.Conv2d(256, 32, 1), nn.Conv2d(256, 256, 1)
        self.strength = nn.Parameter(torch.zeros(1))
        self.map = nn.Conv2d(256, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [B, 256, h, w] weighted, without a sigmoid as in the authors' code."""
        size = x.shape[-2:]
        pooled = self.pooled(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *size)
        y = self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))
        query, key, value = (part(y).flatten(2) for part in (self.query, self.key, self.value))
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        y = y + self.strength * (value @ attention.transpose(1, 2)).unflatten(2, size)
        return x * self.map(y)


class DualBranchUNet(nn.Module):
    """One encoder, a main decoder and a perturbed auxiliary one.

    Calling it gives the logits of inference; :meth:`branches` gives all that a training step needs.

    Args:
        classes: K + 1, background included.
        skip_fusion: ``csf`` (:class:`SkipFusion`, separate weights for the two branches) or ``none``.
        joint_output: a 3 x 3 convolution over the features of both decoders makes ``out``; otherwise ``out`` is
            ``main``.
        activation: ``prelu`` or ``leaky_relu``.
        use_gpm: see :class:`GlobalPrior`.
        perturb_at_eval: drop features of the auxiliary branch at inference too, as the authors' functional call
            does: the joint output is then random. Here the perturbation is for training alone.
        dropout: share of the auxiliary branch's channels that are dropped.
        in_channels: of the image.

    Raises:
        UserError: for an unknown option.
    """

    def __init__(
        self,
        classes: int,
        skip_fusion: str = "csf",
        joint_output: bool = True,
        activation: str = "prelu",
        use_gpm: bool = False,
        perturb_at_eval: bool = False,
        dropout: float = 0.5,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        if skip_fusion not in ("none", "csf"):
            raise UserError(f"skip_fusion {skip_fusion!r} is unknown: choose csf or none.")
        if activation not in _ACTIVATIONS:
            raise UserError(f"activation {activation!r} is unknown: choose one of {', '.join(_ACTIVATIONS)}.")
        self.perturb_at_eval, self.dropout = perturb_at_eval, dropout
        self.encoder = Encoder(in_channels, activation)
        self.gpm = GlobalPrior() if use_gpm else None
        self.main_decoder, self.aux_decoder = Decoder(activation), Decoder(activation)
        self.main_head, self.aux_head = (nn.Conv2d(CHANNELS[0], classes, 3, padding=1) for _ in range(2))
        self.main_fusion, self.aux_fusion = (
            nn.ModuleList(SkipFusion(c) for c in CHANNELS[:-1]) if skip_fusion == "csf" else None for _ in range(2)
        )
        self.joint_head = nn.Conv2d(2 * CHANNELS[0], classes, 3, padding=1) if joint_output else None

    @property
    def classes(self) -> int:
        """K + 1."""
        return self.main_head.out_channels

    def __prepare_scriptable__(self) -> DualBranchUNet:
        """Answer torch.jit.script, which does not know what this network is written in."""
        raise UserError("this network is exported by tracing: add --use_trace True to ckpt_export.")

    def forward(self, image: Tensor) -> Tensor:
        """Segment: [B, 1, H, W] in [0, 1] -> logits [B, K + 1, H, W]."""
        features = self._encode(image)
        main = self.main_decoder(self._fuse(features, self.main_fusion))
        if self.joint_head is None:
            return self.main_head(main)
        return self.joint_head(torch.cat([main, self._aux(features)], dim=1))

    def branches(self, image: Tensor) -> BranchOutputs:
        """Run both decoders: [B, 1, H, W] in [0, 1] -> :class:`BranchOutputs`."""
        features = self._encode(image)
        main, aux = self.main_decoder(self._fuse(features, self.main_fusion)), self._aux(features)
        main_logits = self.main_head(main)
        out = main_logits if self.joint_head is None else self.joint_head(torch.cat([main, aux], dim=1))
        return BranchOutputs(out, main_logits, self.aux_head(aux), features[-1])

    def _encode(self, image: Tensor) -> list[Tensor]:
        if image.ndim != 4 or image.shape[-1] % STRIDE or image.shape[-2] % STRIDE:
            raise ValueError(f"images must be [B, 1, H, W], H and W multiples of {STRIDE}, not {tuple(image.shape)}")
        features = self.encoder(image)
        return features if self.gpm is None else [*features[:-1], self.gpm(features[-1])]

    def _aux(self, features: list[Tensor]) -> Tensor:
        return self.aux_decoder(self._perturb(self._fuse(features, self.aux_fusion)))

    def _perturb(self, features: Sequence[Tensor]) -> list[Tensor]:
        active = self.training or self.perturb_at_eval
        return [F.dropout2d(x, self.dropout, training=active) for x in features]

    @staticmethod
    def _fuse(features: list[Tensor], modules: nn.ModuleList | None) -> list[Tensor]:
        """Run the fusion from deep to shallow; the deepest features stay."""
        if modules is None:
            return features
        fused, outputs = features[-1], [features[-1]]
        for skip, module in zip(reversed(features[:-1]), reversed(modules), strict=True):
            fused, output = module(skip, fused)
            outputs.insert(0, output)
        return outputs


def build_segmentor(
    classes: int,
    architecture: str = "sam_sp",
    checkpoint: str | os.PathLike | None = None,
    use_gpm: bool = False,
    perturb_at_eval: bool = False,
) -> DualBranchUNet:
    """Build the segmentor and load its weights strictly.

    Args:
        classes: K + 1, background included.
        architecture: one of :data:`ARCHITECTURES`.
        checkpoint: a plain state dict; None leaves the weights random.
        use_gpm: see :class:`GlobalPrior`.
        perturb_at_eval: see :class:`DualBranchUNet`.

    Returns:
        The network, in evaluation mode.

    Raises:
        UserError: for an unknown architecture, a missing file, or weights of another architecture.

    Example:
        >>> network = build_segmentor(4, checkpoint="bundles/sam_sp/models/model.pt")
        >>> network(images).shape  # images [B, 1, 256, 256] in [0, 1]
        torch.Size([2, 4, 256, 256])
    """
    if architecture not in ARCHITECTURES:
        raise UserError(f"architecture {architecture!r} is unknown: choose one of {', '.join(ARCHITECTURES)}.")
    options = ARCHITECTURES[architecture]
    network = DualBranchUNet(
        classes,
        skip_fusion=str(options["skip_fusion"]),
        joint_output=bool(options["joint_output"]),
        activation=str(options["activation"]),
        use_gpm=use_gpm,
        perturb_at_eval=perturb_at_eval,
    )
    if checkpoint is not None:
        load_weights(network, checkpoint, architecture, "--architecture and the number of labels", _recognise)
    return network.eval()


def _recognise(state: Mapping[str, Any]) -> str | None:
    """Say how the segmentor was built that weights are of, and what to set."""
    head = state.get("main_head.weight")
    if isinstance(head, Tensor) and head.ndim == 4:
        architecture = "sam_sp" if any(str(name).startswith("main_fusion.") for name in state) else "plain"
        prior = ", with the prior map (use_gpm)" if any(str(name).startswith("gpm.") for name in state) else ""
        return (
            f"they are of architecture {architecture} for {len(head) - 1} labels{prior}: set --architecture and the "
            "number of labels as they were trained."
        )
    if any(str(name).startswith("mask_decoder.") for name in state):
        return "they are those of a SAM: give a segmentor's, the model.pt of a training."
    return None
