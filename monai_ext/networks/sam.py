"""Promptable segmentation models: Segment Anything and a compact model under SAM's own prompt encoder and decoder.

The only module that imports `segment_anything`. :class:`PromptableSam` fulfils the protocols of
:mod:`monai_ext.networks.backbone`, which are all that methods know of it:

* :meth:`~PromptableSam.encode`: images in the input frame -> :class:`Embeddings`
* :meth:`~PromptableSam.decode`: embeddings and prompts -> low-resolution logits and predicted IoU
* :meth:`~PromptableSam.to_image`: low-resolution logits -> the input frame

The *input frame* is what :class:`monai_ext.transforms.sam_input.SamInputd` makes: [C, H, W] in [0, 255],
max(H, W) at most ``image_size``. Normalisation and padding to a square happen in here, after SAM (Kirillov et al.
2023).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from monai_ext.errors import UserError
from monai_ext.files import sha256_of
from monai_ext.networks import fast_decoder
from monai_ext.networks.backbone import Embeddings
from monai_ext.networks.compact_encoder import CompactImageEncoder, PyramidEncoder
from monai_ext.networks.fast_encoder import FastImageEncoder
from monai_ext.networks.guidance import Guidance, guided_transformer
from monai_ext.networks.pretrained_encoder import IMAGENET_MEAN, IMAGENET_STD, PretrainedImageEncoder
from monai_ext.networks.square import from_square, to_square
from monai_ext.networks.state_dict import check_file, load_weights, refuse_other_weights
from monai_ext.prompts.prompt import Prompt

try:
    from segment_anything import sam_model_registry
    from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
except (ImportError, RuntimeError) as error:  # a torch without its torchvision: "operator torchvision::nms ..."
    raise ImportError(
        "segment_anything could not be imported because torch and torchvision do not fit together: install both from "
        "the same place, `pip install --force-reinstall torch torchvision`"
    ) from error

CHECKPOINTS = {
    "vit_b": (
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": (
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": (
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}
"""Official checkpoints: variant -> (url, sha256)."""

VARIANTS = ("compact", "compact_lite", *CHECKPOINTS)

WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Channels of SAM's image encoders."""


class _PairedMaskDecoder(MaskDecoder):
    """SAM's mask decoder with one embedding for each set of prompts, so that several images decode at once.

    SAM repeats a single image's embedding for all its prompts; the weights are the same. Where no gradient is needed,
    :mod:`monai_ext.networks.fast_decoder` does the same arithmetic faster.
    """

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        guidance: Guidance | None = None,
    ) -> tuple[Tensor, Tensor]:
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        if guidance is None and fast_decoder.fits(self, image_embeddings):
            return fast_decoder.decode(
                self, image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, chosen
            )
        masks, quality = self.predict_masks(
            image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, guidance
        )
        return masks[:, chosen], quality[:, chosen]

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        guidance: Guidance | None = None,
    ) -> tuple[Tensor, Tensor]:
        batch = sparse_prompt_embeddings.shape[0]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(batch, -1, -1), sparse_prompt_embeddings], dim=1)
        source = image_embeddings + dense_prompt_embeddings
        positions = image_pe.expand(batch, -1, -1, -1)
        if guidance is None:
            tokens, source = self.transformer(source, positions, tokens)
        else:
            tokens, source = guided_transformer(self.transformer, source, positions, tokens, guidance)
        mask_tokens = tokens[:, 1 : 1 + self.num_mask_tokens]
        source = source.transpose(1, 2).reshape(image_embeddings.shape)
        upscaled = self.output_upscaling(source)
        weights = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks = torch.einsum("bmc,bchw->bmhw", weights, upscaled)
        return masks, self.iou_prediction_head(tokens[:, 0])


class PromptableSam(nn.Module):
    """A promptable segmentation model in SAM's three parts (Kirillov et al. 2023; P²SAM paper, Eq. 4).

    The attribute names are those of `segment_anything.modeling.Sam`, so an official state dict loads strictly.

    Args:
        image_encoder: [B, 3, S, S] -> [B, C, g, g]; has ``img_size`` = S.
        prompt_encoder: SAM's prompt encoder for the same S and g.
        mask_decoder: SAM's mask decoder of width C.
        pixel_mean: mean of each channel that normalises images in [0, 255].
        pixel_std: standard deviation of each channel.

    Attributes:
        precision: of the encoder, ``float32`` or ``bfloat16``; see :mod:`monai_ext.networks.precision`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    precision: str = "float32"

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        mask_decoder.__class__ = _PairedMaskDecoder  # same parameters, paired with images instead of repeated
        self.mask_decoder = mask_decoder
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights strictly, also for a caller that asks for less: MONAI Label only warns of a wrong checkpoint.

        Raises:
            UserError: if a key or a shape does not fit, or a number is not finite.
        """
        refuse_other_weights(self, state_dict, "the weights that were given", recognise=partial(_recognise, ""))
        return super().load_state_dict(state_dict, strict=True, assign=assign)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.pixel_mean.device

    @property
    def image_size(self) -> int:
        """Side S of the padded square the encoder takes, in pixels."""
        return int(self.image_encoder.img_size)  # type: ignore[arg-type]

    @property
    def grid(self) -> int:
        """Number g of embedding cells along one side."""
        return int(self.prompt_encoder.image_embedding_size[0])

    @property
    def stride(self) -> int:
        """Input-frame pixels along one side of an embedding cell."""
        return self.image_size // self.grid

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise and pad: [B, 1 or 3, H, W] in [0, 255] -> [B, 3, S, S], zero-padded at the bottom and right."""
        return to_square(images, self.pixel_mean, self.pixel_std, self.image_size)

    def encode(self, images: Tensor) -> Embeddings:
        """Encode images of the input frame, [B, 1 or 3, H, W] in [0, 255], on any device."""
        pixels = self.preprocess(images.to(self.device))
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            features = self.image_encoder(pixels).float()
        return Embeddings(features, (images.shape[-2], images.shape[-1]))

    def encoder_state(self) -> dict[str, Tensor]:
        """Return all tensors that make an embedding, by name: the encoder's weights and the normalisation."""
        state: dict[str, Tensor] = self.image_encoder.state_dict()
        return {**state, "mean": self.pixel_mean, "std": self.pixel_std}

    def decode_batch(
        self,
        features: Tensor,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask: bool = False,
        attention_bias: Tensor | None = None,
        target_embedding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts of one size, each with its own embedding.

        No points and no box is the paper's no-prompt case: the not-a-point and the no-mask embedding
        (P²SAM, Appendix B); the authors' code feeds an empty sequence of tokens instead.

        Args:
            features: [K, C, g, g].
            points: [K, N, 2] (x, y) in input-frame pixels, N may be 0.
            labels: [K, N], 1 for a point inside, 0 for one outside.
            boxes: [K, 4] (x0, y0, x1, y1) in input-frame pixels.
            mask_input: [K, 1, 4g, 4g] logits of an earlier mask.
            multimask: return SAM's three ambiguous masks instead of the one.
            attention_bias: [K or 1, g, g], see :mod:`monai_ext.networks.guidance`.
            target_embedding: [K or 1, C], likewise. Where both are None SAM's own transformer runs.

        Returns:
            Logits [K, M, 4g, 4g] and predicted IoU [K, M], M = 3 with ``multimask`` else 1.
        """
        count = features.shape[0]
        given = None if boxes is not None and points.shape[1] == 0 else (points, labels)
        sparse, dense = self.prompt_encoder(points=given, boxes=boxes, masks=mask_input)
        guided = attention_bias is not None or target_embedding is not None
        guidance = Guidance(attention_bias, target_embedding) if guided else None
        return self.mask_decoder(
            image_embeddings=features,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse.expand(count, -1, -1),
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            guidance=guidance,
        )

    def decode(
        self,
        embeddings: Embeddings,
        prompts: Sequence[Prompt],
        mask_input: Tensor | None = None,
        multimask: bool = False,
        attention_bias: Tensor | None = None,
        target_embedding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts of different lengths, in groups of equal length.

        Padding prompts to one length with SAM's "not a point" label changes the masks, so it is not done.

        Args:
            embeddings: of one image for all prompts, or of one image a prompt.
            prompts: K prompts in input-frame pixels.
            mask_input: [K, 1, 4g, 4g] logits of earlier masks, or None.
            multimask: see :meth:`decode_batch`.
            attention_bias: [1, g, g] for all prompts or [K, g, g]; see :meth:`decode_batch`.
            target_embedding: [1, C] for all prompts or [K, C].

        Returns:
            Logits [K, M, 4g, 4g] and predicted IoU [K, M], in the order of the prompts.
        """
        if len(embeddings) not in (1, len(prompts)):
            raise ValueError(f"{len(embeddings)} embeddings for {len(prompts)} prompts: give one, or one a prompt")
        groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for k, prompt in enumerate(prompts):
            groups[len(prompt.points), prompt.box is not None].append(k)
        masks: list[Tensor] = [torch.empty(0)] * len(prompts)
        quality: list[Tensor] = [torch.empty(0)] * len(prompts)
        features, device = embeddings.features, embeddings.features.device
        for (_, boxed), members in groups.items():
            chosen = [prompts[k] for k in members]
            logits, iou = self.decode_batch(
                features[members] if len(embeddings) > 1 else features.expand(len(members), -1, -1, -1),
                torch.stack([p.points for p in chosen]).to(device),
                torch.stack([p.labels for p in chosen]).to(device),
                torch.stack([p.box for p in chosen if p.box is not None]).to(device) if boxed else None,
                None if mask_input is None else mask_input[members],
                multimask,
                _of_members(attention_bias, members),
                _of_members(target_embedding, members),
            )
            for k, mask, score in zip(members, logits, iou, strict=True):
                masks[k], quality[k] = mask, score
        return torch.stack(masks), torch.stack(quality)

    def decode_tokens(
        self,
        embeddings: Embeddings,
        tokens: Tensor,
        mask_input: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Decode sparse embeddings that were made elsewhere, such as learned prompts, past the prompt encoder.

        Args:
            embeddings: of one image for all sets of tokens, or of one image a set.
            tokens: [K, N, C], K sets of N tokens as the prompt encoder gives them for N points.
            mask_input: [K, 1, 4g, 4g] logits of earlier masks, or None.
            multimask: see :meth:`decode_batch`.

        Returns:
            Logits [K, M, 4g, 4g] and predicted IoU [K, M].
        """
        if len(embeddings) not in (1, len(tokens)):
            raise ValueError(f"{len(embeddings)} embeddings for {len(tokens)} sets of tokens: give one, or one a set")
        _, dense = self.prompt_encoder(points=None, boxes=None, masks=mask_input)
        return self.mask_decoder(
            image_embeddings=embeddings.features.expand(len(tokens), -1, -1, -1),
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=tokens,
            dense_prompt_embeddings=dense.expand(len(tokens), -1, -1, -1),
            multimask_output=multimask,
        )

    def decode_without_prompt(self, embeddings: Embeddings) -> tuple[Tensor, Tensor]:
        """Decode each image without a prompt, the paper's no-prompt case; see :meth:`decode_batch`."""
        nothing = embeddings.features.new_zeros(len(embeddings), 0, 2)
        return self.decode_batch(embeddings.features, nothing, nothing[..., 0])

    def to_image(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Map logits [K, M, 4g, 4g] of the padded square back to the input frame: [K, M, H, W] (bilinear)."""
        return from_square(logits, self.image_size, size)

    def __prepare_scriptable__(self) -> PromptableSam:
        """Answer torch.jit.script."""
        raise _not_exportable()

    def forward(self, images: Tensor) -> Tensor:
        """Segment without a prompt: [B, 1 or 3, H, W] in [0, 255] -> logits [B, 1, H, W]."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise _not_exportable()
        embeddings = self.encode(images)
        logits, _ = self.decode_without_prompt(embeddings)
        return self.to_image(logits, embeddings.size)


def _not_exportable() -> UserError:
    return UserError(
        "a promptable network cannot be exported (ckpt_export, onnx_export, trt_export): alone it would segment "
        "without prompts; run the bundle, which encodes an image once and decodes its prompts."
    )


def _of_members(given: Tensor | None, members: list[int]) -> Tensor | None:
    """Take the rows of some prompts from what is given once for all, or once a prompt."""
    return given if given is None or len(given) == 1 else given[members]


def build_compact(
    image_size: int = 256,
    stride: int = 8,
    channels: Sequence[int] = (32, 64, 128, 256),
    blocks: Sequence[int] = (2, 2, 2),
    width: int = 128,
) -> PromptableSam:
    """Build the compact model with random weights.

    Args:
        image_size: side of the padded input square in pixels.
        stride: pixels of an embedding cell.
        channels: see :class:`CompactImageEncoder`.
        blocks: see :class:`CompactImageEncoder`.
        width: channels of the embedding and of SAM's transformer; a multiple of 8.
    """
    return _under_sam(CompactImageEncoder(image_size, stride, channels, blocks, width), width)


def build_compact_lite(
    image_size: int = 256, stride: int = 8, width: int = 128, imagenet: bool = False
) -> PromptableSam:
    """Build the compact model over EfficientNet-Lite0, with random weights or with a trunk from ImageNet.

    Args:
        image_size: side of the padded input square in pixels.
        stride: pixels of an embedding cell.
        width: channels of the embedding and of SAM's transformer; a multiple of 8.
        imagenet: start the trunk from ImageNet; needs the extra ``pretrained``.
    """
    encoder = PretrainedImageEncoder(image_size, stride, width)
    if imagenet:
        encoder.load_imagenet()
    model = _under_sam(encoder, width, IMAGENET_MEAN, IMAGENET_STD)
    _start_alike(model.mask_decoder.transformer)
    return model


def _start_alike(transformer: TwoWayTransformer) -> None:
    """Give queries and keys between prompts and image the same weights to start from.

    A prompt then attends to its own place, and cells to the prompts on tissue like theirs, from the first iteration
    on; a decoder with random weights spends hundreds of iterations to find that.
    """
    across = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        across += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in across:
        with torch.no_grad():
            attention.q_proj.weight.mul_(3)  # else a softmax over a thousand cells is all but even
            attention.k_proj.weight.copy_(attention.q_proj.weight)


def _under_sam(encoder: PyramidEncoder, width: int, *normalisation: Sequence[float]) -> PromptableSam:
    """Put an encoder of ``width`` channels under SAM's prompt encoder and a mask decoder of that width."""
    image_size, grid = encoder.img_size, encoder.img_size // encoder.stride
    return PromptableSam(
        encoder.to(memory_format=torch.channels_last),  # oneDNN's layout: no reordering between convolutions
        PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=4 * width, num_heads=8),
            transformer_dim=width,
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        ),
        *normalisation,
    )


def build_sam(
    variant: str = "compact",
    checkpoint: str | os.PathLike | None = None,
    precision: str = "float32",
    **compact: Any,
) -> PromptableSam:
    """Build a promptable model and load its weights strictly; SAM's ViT in the form of :class:`FastImageEncoder`.

    Args:
        variant: ``compact``, ``compact_lite``, or SAM's ``vit_b``, ``vit_l``, ``vit_h``.
        checkpoint: a plain state dict (``.pt``, ``.pth``) of that variant: SAM's official files, MedSAM's, or one
            that our training wrote. None leaves the weights random.
        precision: of the encoder, see :func:`monai_ext.networks.precision.choose_precision`.
        **compact: sizes of the compact models, see :func:`build_compact` and :func:`build_compact_lite`.

    Raises:
        UserError: for an unknown variant, a missing file, or weights of another variant.

    Example:
        >>> sam = build_sam("compact", "bundles/p2sam/models/compact_chaos.pt")
        >>> embeddings = sam.encode(images)  # [B, 1 or 3, H, W] in [0, 255]
        >>> logits, iou = sam.decode(embeddings, [Prompt.from_points(torch.tensor([[120.0, 96.0]]))])
    """
    if variant not in VARIANTS:
        raise UserError(f"sam_variant {variant!r} is unknown: choose one of {', '.join(VARIANTS)}.")
    if checkpoint is not None:
        check_file(Path(checkpoint), variant)  # before a large network is built
    if variant == "compact":
        model = build_compact(**compact)
    elif variant == "compact_lite":
        model = build_compact_lite(**compact)
    else:
        sam = sam_model_registry[variant](checkpoint=None)
        model = PromptableSam(FastImageEncoder(sam.image_encoder), sam.prompt_encoder, sam.mask_decoder)
    model.precision = precision
    if checkpoint is not None:
        load_weights(model, checkpoint, variant, recognise=partial(_recognise, variant))
    return model.eval()


def add_drop_path(network: PromptableSam, rate: float) -> PromptableSam:
    """Add stochastic depth to the blocks of SAM's ViT (P²SAM §4.1: 0.1), from 0 at the first block to ``rate``.

    A dropped block is skipped whole; timm, which the authors use, drops its two branches one by one. The weights and
    inference are unchanged.

    Raises:
        UserError: if the encoder has no transformer blocks and ``rate`` is not 0.
    """
    blocks = getattr(network.image_encoder, "blocks", None)
    _check_drop_path(rate, is_vit=blocks is not None)
    if not rate or blocks is None:
        return network
    for index, block in enumerate(blocks):
        block.register_forward_hook(_stochastic_depth(rate * index / max(len(blocks) - 1, 1)))
    return network


def check_drop_path(rate: float, variant: str) -> None:
    """Refuse what :func:`add_drop_path` would refuse, before a network of this variant is built."""
    _check_drop_path(rate, is_vit=variant in CHECKPOINTS)


def _check_drop_path(rate: float, is_vit: bool) -> None:
    if rate and not is_vit:
        raise UserError(f"drop_path {rate} needs a ViT: set --drop_path 0 for the compact model.")
    if not 0 <= rate <= 1:
        raise UserError(f"--drop_path is {rate}: give a share from 0 to 1.")


def _stochastic_depth(rate: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not module.training or not rate:
            return output
        return inputs[0] + stochastic_depth(output - inputs[0], rate, mode="row")

    return hook


def _recognise(asked: str, state: Mapping[str, Any]) -> str | None:
    """Say of which variant weights are that are not of the one asked for, and what to set."""
    positions = state.get("image_encoder.pos_embed")
    variant = WIDTHS.get(positions.shape[-1]) if isinstance(positions, Tensor) and positions.ndim else None
    if variant is None and any(str(name).startswith("image_encoder.stages.") for name in state):
        lite = any(".conv_pw." in str(name) for name in state)  # timm's name, of EfficientNet's blocks
        variant = "compact_lite" if lite else "compact"
    if variant is not None and variant != asked:
        return f"they are {variant} weights: give the checkpoint of this variant or set --sam_variant {variant}."
    if any(str(name).startswith("main_decoder.") for name in state):
        return "they are those of a segmentor of the bundle sam_sp: give the checkpoint of a SAM."
    return None


def fetch_checkpoint(variant: str, folder: str | os.PathLike | None = None) -> Path:
    """Return SAM's official checkpoint, downloaded once with a progress bar and checked by sha256.

    Args:
        variant: ``vit_b``, ``vit_l`` or ``vit_h``.
        folder: where checkpoints are kept; default ``checkpoints`` in torch.hub's folder.

    Raises:
        UserError: if it is not there and cannot be fetched, or its sha256 is not the official one.
    """
    if variant not in CHECKPOINTS:
        raise UserError(f"there is no official checkpoint of {variant!r}: choose one of {', '.join(CHECKPOINTS)}.")
    url, sha256 = CHECKPOINTS[variant]
    path = Path(folder or Path(torch.hub.get_dir()) / "checkpoints") / url.rsplit("/", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        try:
            torch.hub.download_url_to_file(url, str(partial), progress=True)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(
                f"SAM's checkpoint could not be fetched from {url} ({error}): download it elsewhere and put it at "
                f"{path}, or give its path with --checkpoint."
            ) from error
        _check_sha256(partial, sha256, url)
        os.replace(partial, path)
    else:
        _check_sha256(path, sha256, url)
    return path


def _check_sha256(path: Path, expected: str, url: str) -> None:
    actual = sha256_of(path)
    if actual != expected:
        path.unlink()
        raise UserError(
            f"{path.name} from {url} has sha256 {actual[:12]}..., not {expected[:12]}...: the file was incomplete or "
            "altered and has been deleted; run again to fetch it anew."
        )
