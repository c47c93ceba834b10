"""Learned prompts: which weights a run has, and whether they fit its SAM."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_ext.data.drawn_supports import draw_support
from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.pairs import Pair, pair_with_reference
from monai_ext.data.provenance import as_trained, read_record, verify_weights, weights_sha256
from monai_ext.data.supports import pair_with_support, parse_support
from monai_ext.errors import UserError
from monai_ext.files import sha256_of
from monai_ext.networks.prompt_distribution import PromptDistributionNet
from monai_ext.networks.reference_encoder import build_reference
from monai_ext.networks.sam import PromptableSam
from monai_ext.networks.state_dict import load_weights
from monai_ext.prompts.distribution import Sampler, check_count
from monai_ext.session.supports import refuse_known, trained_patients
from monai_ext.session.weights import locate_weights

SAM = "sam"
"""Entry of ``trained_as`` in the record of learned prompts: the name of the SAM that they were learned beside."""
SAM_SHA256 = "sam_sha256"
"""Likewise: the checksum of that SAM's weights."""


def find_prompts(
    prompt_checkpoint: str | None,
    bundle_root: str | os.PathLike,
    weights: str | os.PathLike | None = None,
) -> Path:
    """Return the file of learned prompts: a path, or the name of a file in the bundle's ``models``.

    Args:
        prompt_checkpoint: None: ``prompts``.
        bundle_root: the bundle's folder.
        weights: of the SAM that they are to prompt; None: do not ask whether they fit.

    Raises:
        UserError: for a missing file, one without a record or that is not its record's, or prompts of another SAM.
    """
    path = locate_weights(str(prompt_checkpoint or "prompts"), bundle_root, "prompt_checkpoint")
    record = read_record(path)
    if record is None or SAM_SHA256 not in record.trained_as:
        raise UserError(
            f"learned prompts {path} have no record that says which SAM they fit: keep the .json file that their "
            "training wrote beside them."
        )
    verify_weights(path, record)
    if weights is not None and record.trained_as[SAM_SHA256] != weights_sha256(weights):
        raise UserError(
            f"learned prompts {path} fit the SAM {record.trained_as.get(SAM)} with sha256 "
            f"{str(record.trained_as[SAM_SHA256])[:12]}..., but {weights} has {weights_sha256(weights)[:12]}...: give "
            "that SAM with --checkpoint, or train prompts for this one."
        )
    return path


def check_prompts(
    prompt_checkpoint: str | None, bundle_root: str | os.PathLike, weights: str | os.PathLike | None = None
) -> None:
    """Refuse learned prompts that are not there or fit another SAM; see :func:`find_prompts`."""
    find_prompts(prompt_checkpoint, bundle_root, weights)


def sam_of_prompts(prompt_checkpoint: str | None, bundle_root: str | os.PathLike, otherwise: str) -> str:
    """Return the name of the SAM that learned prompts fit; ``otherwise`` where there are no prompts to ask."""
    try:
        path = find_prompts(prompt_checkpoint, bundle_root)
    except UserError:  # who goes on to use them is told
        return otherwise
    return str(as_trained(path, SAM, otherwise))


def load_prompts(
    checkpoint: str | os.PathLike, network: PromptableSam, device: Any, mask_downsample: str | None = None
) -> PromptDistributionNet:
    """Build the network of learned prompts as its record says, and load it strictly.

    Args:
        checkpoint: of :func:`find_prompts`.
        network: the SAM that they prompt.
        device: where to.
        mask_downsample: None: as it was trained.

    Raises:
        UserError: the weights do not fit: another width, another reference encoder.
    """
    record = read_record(checkpoint)
    told = {} if record is None else record.trained_as
    options = {key: told[key] for key in NETWORK_OPTIONS if key in told}
    if mask_downsample is not None:
        options["mask_downsample"] = mask_downsample
    prompts = build_prompts(network, trunk_weights=None, **options)
    load_weights(prompts, checkpoint, "learned prompts", "--prompt_checkpoint")
    return prompts.to(device).eval()


def load_compared(
    compared: Mapping[str, str] | None,
    prompt_file: str | os.PathLike,
    bundle_root: str | os.PathLike,
    weights: str | os.PathLike,
    network: PromptableSam,
    device: Any,
) -> dict[str, PromptDistributionNet]:
    """Load several learned prompts of one SAM, by name.

    Args:
        compared: name -> file or name of prompts, see :func:`find_prompts`; None: ``prompt_file`` alone.
        prompt_file: learned prompts.
        bundle_root: the bundle's folder.
        weights: of the SAM.
        network: the SAM.
        device: where to.

    Raises:
        UserError: it is no such mapping, or what :func:`find_prompts` and :func:`load_prompts` refuse.
    """
    if compared is None:
        return {Path(prompt_file).stem: load_prompts(prompt_file, network, device)}
    if not isinstance(compared, Mapping) or not compared:
        raise UserError(f"--compared is {compared}: give names and files, \"{{'ProSAM': 'a.pt', 'VRP-SAM': 'b.pt'}}\".")
    files = {str(name): find_prompts(str(path), bundle_root, weights) for name, path in compared.items()}
    return {name: load_prompts(path, network, device) for name, path in files.items()}


NETWORK_OPTIONS = (
    *("trunk", "trunk_size", "sampler", "nu", "joint", "two_linear", "prompt_count", "hidden", "sigma_min"),
    *("fixed_sigma", "mask_downsample"),
)
"""Options of :func:`build_prompts` that the record of learned prompts tells."""


def build_prompts(
    network: PromptableSam,
    trunk: str = "tf_efficientnet_lite0",
    trunk_weights: str | None = "imagenet",
    trunk_size: int | None = None,
    sampler: str = "t",
    nu: int = 5,
    joint: bool = False,
    two_linear: bool = False,
    prompt_count: int = 50,
    hidden: int | None = None,
    sigma_min: float = 0.0,
    fixed_sigma: float | None = None,
    mask_downsample: str = "max",
    seed: int = 0,
) -> PromptDistributionNet:
    """Build the network that learns prompts, for one SAM, whose parameters are frozen.

    Args:
        network: the SAM.
        trunk: reference encoder, see :func:`monai_ext.networks.reference_encoder.build_reference`.
        trunk_weights: likewise.
        trunk_size: likewise, its ``image_size``.
        sampler: see :class:`Sampler`, as the next two.
        nu: likewise.
        joint: likewise.
        two_linear: see :class:`PromptDistributionNet`, as the further ones.
        prompt_count: likewise, its ``prompts``.
        hidden: likewise.
        sigma_min: likewise.
        fixed_sigma: likewise.
        mask_downsample: likewise.
        seed: of the random numbers that it starts from.
    """
    network.requires_grad_(False)
    channels = int(network.prompt_encoder.embed_dim)
    reference = build_reference(trunk, network, channels, trunk_weights, trunk_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PromptDistributionNet(
            reference,
            channels,
            prompt_count,
            hidden,
            Sampler(sampler, nu, joint),
            two_linear,
            sigma_min,
            fixed_sigma,
            mask_downsample=mask_downsample,
        )


def prompts_trained_as(weights: str | os.PathLike, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the record of learned prompts tells: options that inference repeats, and which SAM they fit.

    Args:
        weights: of the SAM.
        options: those of :func:`build_prompts`, and further ones.
    """
    record = read_record(weights)
    name = Path(weights).stem if record is None else record.name
    return {**options, SAM: name, SAM_SHA256: weights_sha256(weights)}


def seen_by(weights: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the data sets of a SAM's training, for the record of prompts that were learned beside it."""
    record = read_record(weights)
    return [] if record is None else [data.model_dump() for data in record.datasets]


def check_sampler(sampler: str, nu: int, samples: int) -> None:
    """Refuse an unknown sampler, or K or nu out of range, before anything is built.

    Raises:
        UserError: names what there is.
    """
    Sampler(sampler, nu)
    check_count(samples)


def short_sha256(path: str | os.PathLike) -> str:
    """Return the first digits of a file's checksum, for a summary."""
    return sha256_of(path)[:12]


def pair_references(
    cases: DataList,
    datalist_file: str | os.PathLike,
    data_root: str | os.PathLike | None,
    reference_visit: Any,
    support: str | None,
    organ: str | None,
    output_dir: str | os.PathLike,
    prompt_file: str | os.PathLike,
    allow_trained: bool = False,
    slice_axis: str | None = None,
    labels: Collection[str] = (),
    allow_modality: bool = False,
    support_points: Sequence[Sequence[float]] | None = None,
    support_box: Sequence[Sequence[float]] | None = None,
) -> list[Pair]:
    """Give each target its references: earlier visits, those that the data list names, or one support for all.

    Args:
        cases: the targets, perhaps those of one fold.
        datalist_file: the whole list, of which the support is taken.
        data_root: folder that its relative paths refer to.
        reference_visit: see :func:`monai_ext.data.pairs.pair_with_reference`.
        support: see :func:`monai_ext.data.supports.pair_with_support`; None: there is none.
        organ: the structure that the support shows.
        output_dir: the support's mask is written to its folder ``supports``.
        prompt_file: learned prompts, whose record names the patients and classes of the training.
        allow_trained: let these pass.
        slice_axis: axis that counts the support's slices, as the network cuts them; see
            :func:`monai_ext.data.supports.pair_with_support`.
        labels: names of the structures asked for; of a support, its organ alone.
        allow_modality: let support and target be of different modalities.
        support_points: points in the structure, in place of the support's label; see
            :func:`monai_ext.data.drawn_supports.draw_support`.
        support_box: likewise two corners of a box around it.

    Raises:
        UserError: a support without an organ or the reverse, points or a box without a support, a structure or patient
            of the training, or what the three refuse.
    """
    if support is None and organ is not None:
        raise UserError("--organ says what a support shows: give --support with it, or --labels in its place.")
    if support is not None and organ is None:
        raise UserError("--support needs --organ, the name of the structure that it shows.")
    drawn = support_points is not None or support_box is not None
    if drawn and support is None:
        raise UserError("--support_points and --support_box annotate a support: name its case with --support.")
    if not allow_trained:
        refuse_known(prompt_file, list(labels) if organ is None else [organ], "allow_trained")
    if support is None or organ is None:
        pairs = pair_with_reference(cases, reference_visit)
        if not allow_trained:
            _refuse_trained(prompt_file, pairs, trained_patients(prompt_file, cases))
        return pairs
    folder = Path(output_dir) / "supports"
    whole = load_datalist(datalist_file, data_root)
    if drawn:
        whole = draw_support(whole, support, organ, folder, support_points, support_box, slice_axis)
    trained = trained_patients(prompt_file, whole)
    return pair_with_support(
        cases,
        support,
        organ,
        folder,
        supports=whole,
        trained=trained,
        allow_modality=allow_modality,
        allow_trained=allow_trained,
        slice_axis=slice_axis,
        trained_option="allow_trained",
    )


def choose_reference_slice(
    reference_slice: str | None, support: str | None, support_points: Sequence[Sequence[float]] | None = None
) -> str | None:
    """Return which slice of a reference serves; where slices are named or points given, others are not annotated.

    Args:
        reference_slice: what the user chose; None: nothing.
        support: see :func:`monai_ext.data.supports.parse_support`.
        support_points: points in it.

    Returns:
        ``nearest`` for such a support, else None: the inferer looks at the reference itself.
    """
    if reference_slice is not None or support is None:
        return reference_slice
    return "nearest" if support_points is not None or parse_support(support).slices else None


def _refuse_trained(prompt_file: str | os.PathLike, pairs: Sequence[Pair], trained: Collection[str]) -> None:
    for pair in pairs:
        patient = str(pair.get("patient") or pair["case"])
        if patient in trained:
            raise UserError(
                f"case {pair['case']!r} is of patient {patient!r}, whom {prompt_file} learned from: leave the patient "
                "out, or set --allow_trained true."
            )
