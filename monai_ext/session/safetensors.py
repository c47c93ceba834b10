"""Weights as safetensors, beside the ``.pt`` that MONAI Label reads: ``python -m monai_ext.session.safetensors``.

A safetensors file holds numbers and text and no pickled objects, so that reading it runs nothing that its writer has
put in. The record of the weights (data sets, patients, licence, command) and the checksum of the tensors are in its
header.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from monai_ext.data.provenance import read_record, verify_weights
from monai_ext.data.safetensors_file import RECORD, SUFFIX, TENSORS_SHA256, tensors_sha256
from monai_ext.errors import UserError, report_user_errors
from monai_ext.files import atomic_path
from monai_ext.networks.state_dict import count_not_finite, read_checkpoint

EPILOG = """examples:
  python -m monai_ext.session.safetensors TRAINING/model.pt
  python -m monai_ext.session.safetensors TRAINING/model.pt --output OUT/model.safetensors
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        UserError: see :func:`write_safetensors`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m monai_ext.session.safetensors",
        description="Write weights as safetensors, with their record inside.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="MODEL.pt", type=Path, help="a plain state dict, with its record beside it")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: beside it, with the suffix .safetensors")
    given = parser.parse_args(arguments)
    path = write_safetensors(given.weights, given.output)
    print(f"{path}: the same tensors, {path.stat().st_size} bytes; give it wherever weights are named")


def write_safetensors(weights: Path, path: Path | None = None) -> Path:
    """Write weights as safetensors, in the same precision, with their record.

    Args:
        weights: a plain state dict whose bytes are those that its record tells.
        path: to write; None: beside the weights.

    Raises:
        UserError: the weights have no record, are not those of their record or not finite, or are no plain state dict;
            ``path`` has another suffix.

    Example:
        >>> write_safetensors(Path("TRAINING/model.pt"))
        PosixPath('TRAINING/model.safetensors')
    """
    path = weights.with_suffix(SUFFIX) if path is None else path
    if path.suffix != SUFFIX:
        raise UserError(f"--output {path}: the name of a safetensors file ends in {SUFFIX}; give such a name.")
    state = read_checkpoint(weights, "network's")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{weights} is not a plain state dict: give the weights that a training wrote at its end.")
    if any(count_not_finite(value) for value in state.values()):
        raise UserError(f"{weights} holds NaN or infinite numbers: give other weights.")
    record = read_record(weights)
    if record is None:
        raise UserError(f"{weights} has no record: keep the .json file that its training wrote beside it.")
    verify_weights(weights, record)
    tensors = {name: value.contiguous().clone() for name, value in state.items()}
    with atomic_path(path) as temporary:
        about = {"format": "pt", RECORD: record.model_dump_json()}
        temporary.write_bytes(save(tensors, about))
        about[TENSORS_SHA256] = tensors_sha256(temporary)
        temporary.write_bytes(save(tensors, about))
    return path


if __name__ == "__main__":
    report_user_errors()
    main()
