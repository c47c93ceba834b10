"""Weights from a file into a network: strictly, and with a sentence that says what another file is.

A file is a plain state dict of finite numbers whose every name and shape fits, written by PyTorch or as safetensors.
Whatever else is given under the name of weights - a training checkpoint, names with a wrapper's prefix, another
variant, LoRA's updates, a web page - is recognised, named and refused: a file that is taken for what it is not would
give masks that nobody asked for.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from monai_ext.errors import UserError
from monai_ext.files import FileMemory, PathLike

Recognise = Callable[[Mapping[str, Any]], str | None]
"""Names the network that the names and shapes of a state dict belong to; None where it is unknown."""

BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch it with git lfs pull",
    b"\x89HDF": "an HDF5 file (Keras), not one of PyTorch",
    b"\x1f\x8b": "a gzip archive: unpack it and give the file inside",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it and give the file inside",
}
"""First bytes of files that are no weights -> what they are and what to do."""

UPDATES = ("lora", "adapter_", "linear_a_", "linear_b_", "w_a_", "w_b_")
"""Parts of names, in small letters, of low-rank updates: ours, of the package peft and of SAMed."""

WRAPPERS = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}
"""What wrappers of PyTorch put into the names of weights."""

MARKS = {
    "image_encoder.trunk.": "SAM 2",
    "sam_mask_decoder.": "SAM 2",
    "vision_encoder.": "SAM under the names of Hugging Face's transformers",
    "mask_decoder.hf_token": "HQ-SAM",
    "image_encoder.layers.": "MobileSAM",
}
"""Beginnings of names of other networks that are called SAM."""


def load_weights(
    model: nn.Module,
    checkpoint: str | os.PathLike,
    variant: str,
    option: str = "--sam_variant",
    recognise: Recognise | None = None,
) -> None:
    """Load a plain state dict into ``model``: every key and every shape must fit, every number be finite.

    Args:
        model: takes the weights.
        checkpoint: file of the weights.
        variant: of the model, for the sentence of an error.
        option: what a user sets to get another variant, for the same.
        recognise: names other variants, for the same.

    Raises:
        UserError: if the file is missing, damaged, holds more than tensors, belongs to another variant, or holds NaN.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path, variant)
    expected = model.state_dict()
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"checkpoint {path} is not a plain state dict: {_wrapped(content, expected, path)}")
    refuse_other_weights(model, content, f"checkpoint {path}", variant, option, recognise, path)
    nn.Module.load_state_dict(model, content, strict=True)


def read_checkpoint(path: Path, variant: str) -> Any:
    """Read a file of ``torch.save`` without running code that it may hold, or one of safetensors.

    Args:
        path: of the file.
        variant: of the network, for the sentence of an error.

    Raises:
        UserError: there is no such file, or it is something else.
    """
    is_safetensors = check_file(path, variant)
    try:
        if is_safetensors:
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is damaged ({error}): copy or download it again.") from error
    except Exception as error:
        kind = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        what = f"it holds {kind[1]}, which" if kind else "it is damaged, or"
        raise UserError(
            f"checkpoint {path} is not a plain state dict of tensors (torch.save(model.state_dict(), ...)): {what} "
            "cannot be read without running code stored in it, and was refused; save it anew where it comes from."
        ) from error


def check_file(path: Path, variant: str) -> bool:
    """Refuse what is no file of ``torch.save`` or safetensors by its first bytes; see :func:`read_checkpoint`.

    Returns:
        Whether it is one of safetensors.
    """
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder: give the path of a {variant} state dict in it.")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: give the path of a {variant} state dict.")
    kind = _KINDS.find(path, _find_kind)
    if kind.other:
        raise UserError(f"checkpoint {path} is not a plain state dict of tensors: it is {kind.other}.")
    return kind.is_safetensors


def refuse_other_weights(
    model: nn.Module,
    state: Mapping[str, Any],
    source: str,
    variant: str = "this model's",
    option: str = "--sam_variant",
    recognise: Recognise | None = None,
    path: Path | None = None,
) -> None:
    """Refuse weights of which a key or a shape does not fit, or a number is not finite.

    Args:
        model: the network.
        state: its would-be state dict.
        source: what the weights are, for the message.
        variant: of the network, for the message.
        option: see :func:`load_weights`.
        recognise: see :func:`load_weights`.
        path: file of the weights, for the remedy.

    Raises:
        UserError: begins with ``source``.
    """
    expected = model.state_dict()
    wrong = sorted(set(expected) ^ set(state), key=str) or sorted(
        k for k, v in state.items() if getattr(v, "shape", None) != expected[k].shape
    )
    if wrong:
        raise UserError(
            f"{source} does not hold {variant} weights ({len(wrong)} parameters differ, the first is {wrong[0]}): "
            f"{_explain(state, expected, option, recognise, path)}"
        )
    for name, value in state.items():
        bad = count_not_finite(value)
        if bad:
            raise UserError(
                f"{source} holds NaN or infinite numbers, the first in {name} ({bad} of {value.numel()}): the training "
                "diverged, or the numbers were too large for float16 when they were saved; give other weights."
            )


def count_not_finite(value: Tensor) -> int:
    """Count the numbers of a tensor that are NaN or infinite."""
    if not value.is_floating_point() and not value.is_complex():
        return 0
    total = value.sum(dtype=torch.float32) if value.dtype.itemsize < 4 else value.sum()  # one pass; NaN and Inf stay
    return 0 if bool(torch.isfinite(total)) else int((~torch.isfinite(value)).sum())


def refuse_diverged(name: str, value: Tensor) -> None:
    """Refuse weights that hold NaN or infinite numbers, before they are written.

    Raises:
        UserError: they do; the training has diverged.
    """
    if count_not_finite(value):
        raise UserError(f"the training has diverged, {name} holds NaN or infinite numbers: lower --learning_rate.")


# ---- what a file is instead ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What a file is by its first bytes: ``other`` says what it is instead of weights, and what to do."""

    is_safetensors: bool
    other: str | None


_KINDS: FileMemory[_Kind] = FileMemory()


def _find_kind(path: PathLike) -> _Kind:
    with open(path, "rb") as file:
        begin = file.read(512)
        return _Kind(_begins_safetensors(begin), _describe(Path(path), file, begin))


def _describe(path: Path, file: BinaryIO, begin: bytes) -> str | None:
    """Say what a file is that holds no weights, and what to do; None where it may hold some."""
    if not begin:
        return "empty: copy or download it again"
    if begin.lstrip()[:1] == b"<":
        return "a web page: what was downloaded is a page about the file or an error; download the file itself"
    for beginning, what in BEGINNINGS.items():
        if begin.startswith(beginning):
            return what
    if _begins_safetensors(begin):
        return _describe_safetensors(path, file, int.from_bytes(begin[:8], "little"))
    if begin.startswith(b"PK"):
        return _describe_archive(file)
    return None


def _begins_safetensors(begin: bytes) -> bool:
    return begin[8:9] == b"{" and 2 <= int.from_bytes(begin[:8], "little") < 2**32


def _describe_safetensors(path: Path, file: BinaryIO, header: int) -> str | None:
    """Say that a safetensors file ends early; None where it is whole, or its header says nothing of its end."""
    size = path.stat().st_size
    file.seek(8)
    text = file.read(header)
    try:
        entries = json.loads(text)
        end = 8 + header + max((e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        end = 8 + header if len(text) < header else 0
    if size < end:
        return f"a safetensors file that ends early ({size} of {end} bytes): copy or download it again"
    return None


def _describe_archive(file: BinaryIO) -> str | None:
    """Say what a zip archive is that ``torch.save`` did not write as such."""
    if not zipfile.is_zipfile(file):
        return "incomplete (it ends early): copy or download it again"
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive: save the network's state_dict() instead"
    if not any(name.endswith("data.pkl") for name in names):
        return "a zip archive: unpack it and give the file inside"
    return None


def _wrapped(content: Any, expected: Mapping[str, Tensor], path: Path) -> str:
    """Say where in a training's checkpoint the weights are, and how to take them out."""
    keys, state = _find_state(content)
    alone = "save model.state_dict() alone"
    if state is None:
        return f"{alone}."
    inside = "".join(f"[{key!r}]" for key in keys)
    others = ", ".join(str(key) for key in content if key != keys[0])
    what = f"it is the checkpoint of a training, with {others}, and its weights" if others else "its weights"
    name = _rename(state, expected)
    if name is None:
        why = _updates(state) or "names or shapes differ"
        return f"{alone}; {what} are in {inside}, but are not those of this network: {why}."
    return f"{alone}; {what} are in {inside}, which this takes out: {_command(path, inside, name)}"


def _find_state(content: Any) -> tuple[list[Any], Mapping[str, Tensor] | None]:
    """Find the largest state dict inside nested dictionaries: its keys, and itself."""
    found: list[tuple[int, list[Any], Mapping[str, Tensor]]] = []

    def search(value: Any, keys: list[Any]) -> None:
        if not isinstance(value, Mapping) or len(keys) > 3:
            return
        if keys and value and all(isinstance(v, Tensor) and isinstance(k, str) for k, v in value.items()):
            found.append((len(value), keys, value))
        for key, entry in value.items():
            search(entry, [*keys, key])

    search(content, [])
    if not found:
        return [], None
    _, keys, state = max(found, key=lambda one: one[0])
    return keys, state


def _explain(
    state: Mapping[str, Any],
    expected: Mapping[str, Tensor],
    option: str,
    recognise: Recognise | None,
    path: Path | None,
) -> str:
    """Say what weights are that do not fit, and what to do."""
    name = _rename(state, expected)
    if name not in (None, "k"):
        wrappers = [word for word in WRAPPERS if any(word in str(key) for key in state)]
        which = " and ".join(f"{word} of {WRAPPERS[word]}" for word in wrappers) or "a prefix"
        remedy = "" if path is None else f", as this does: {_command(path, '', str(name))}"
        return f"their names hold {which}; take that out{remedy}"
    updates = _updates(state)
    if updates:
        return f"{updates}."
    for mark, what in MARKS.items():
        if any(str(key).startswith(mark) for key in state):
            return f"they are those of {what}, which is another network: give the checkpoint of this variant."
    known = None if recognise is None else recognise(state)
    if known is None and name == "k":
        return "all weights of this network are there, and others besides: give the checkpoint of this network alone."
    return known or f"give the checkpoint of this variant or set {option}."


def _rename(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> str | None:
    """Find how the names ``k`` of a network's weights have to be changed to fit, as an expression; None: they do not.

    Wrappers put a prefix before all names (``module.``), or their own into the middle of them.
    """
    first = next(iter(expected))
    prefixes = {str(key).removesuffix(first) for key in state if str(key).endswith(first)}
    for prefix in sorted(prefixes, key=len):
        if _holds(state, {prefix + key: value for key, value in expected.items()}):
            return f"k.removeprefix({prefix!r})" if prefix else "k"
    for wrapper in WRAPPERS:
        plain = {str(key).replace(wrapper, ""): value for key, value in state.items()}
        if _holds(plain, expected):
            return f"k.replace({wrapper!r}, '')"
    return None


def _holds(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> bool:
    """Whether all weights are there, in their shapes; ``state`` may hold others besides."""
    return all(getattr(state.get(key), "shape", None) == value.shape for key, value in expected.items())


def _updates(state: Mapping[str, Any]) -> str | None:
    if any(part in str(name).lower() for name in state for part in UPDATES):
        return (
            "they hold LoRA's low-rank updates, which are no weights by themselves: merge them into the network's own "
            "and save that (train.yaml writes such a file, NAME.pt, when it ends)"
        )
    return None


def _command(path: Path, inside: str, name: str) -> str:
    """Return a command that writes a plain state dict beside a file."""
    load = f"s = torch.load({str(path)!r}, map_location='cpu', weights_only=True){inside}"
    prefix = re.search(r"removeprefix\((.*)\)", name)
    chosen = f" if k.startswith({prefix[1]})" if prefix else ""
    plain = "s" if name == "k" else f"{{{name}: v for k, v in s.items(){chosen}}}"
    return f'python -c "import torch; {load}; torch.save({plain}, {_beside(path)!r})"'


def _beside(path: Path) -> str:
    return str(path.with_name(f"{path.stem}_plain.pt"))
