from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from monai_ext.errors import UserError
from monai_ext.networks.dual_branch_unet import build_segmentor
from monai_ext.networks.sam import build_compact, build_sam
from monai_ext.networks.state_dict import count_not_finite, load_weights

TINY: dict[str, Any] = {"image_size": 64, "stride": 8, "channels": [16, 16, 32, 32], "blocks": [1, 1, 1], "width": 32}
IOU = "mask_decoder.iou_token.weight"


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def weights() -> dict[str, Tensor]:
    return dict(network().state_dict())


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights().items()}


def load(path: Path) -> None:
    load_weights(network(), path, "toy")


def refusal(path: Path, content: Any = None) -> str:
    """What is said of a file, of which ``content`` is written first."""
    if content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as error:
        load(path)
    assert str(path) in str(error.value)
    return str(error.value)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_number_that_is_none_names_its_tensor(tmp_path, number, dtype) -> None:
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights().items()}
    state["0.weight"][1, 1] = number
    assert "holds NaN or infinite numbers, the first in 0.weight (1 of 6)" in refusal(tmp_path / "w.pt", state)


def test_weights_that_overflowed_float16_are_refused(tmp_path) -> None:
    state = {name: (1e6 * (value + 1)).half() for name, value in weights().items() if value.is_floating_point()}
    said = refusal(tmp_path / "w.pt", {**weights(), **state})
    assert "0.weight (6 of 6)" in said
    assert "too large for float16" in said


def test_large_numbers_whose_sum_overflows_are_finite() -> None:
    assert count_not_finite(torch.full((100,), 3e38)) == 0
    assert count_not_finite(torch.full((100,), 6e4).half()) == 0
    assert count_not_finite(torch.tensor([1, 2])) == 0
    assert count_not_finite(torch.zeros(0)) == 0


def test_nan_reaches_no_network_that_a_server_loads() -> None:
    model = build_compact(**TINY)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state[IOU][0, 0] = float("nan")
    with pytest.raises(UserError, match=f"NaN or infinite numbers, the first in {IOU}"):
        model.load_state_dict(state, strict=False)


# ---- files of something else -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (prefixed("module."), "their names hold module. of DataParallel"),
        (prefixed("_orig_mod."), "their names hold _orig_mod. of torch.compile"),
        (prefixed("module._orig_mod."), "module. of DataParallel and _orig_mod. of torch.compile"),
        ({name.replace("0.", "0._orig_mod.", 1): v for name, v in weights().items()}, "_orig_mod. of torch.compile"),
        (prefixed("model."), "their names hold a prefix"),
        ({**prefixed("net."), "loss.weight": torch.zeros(1)}, "their names hold a prefix"),
        ({"state_dict": weights()}, r"its weights are in \['state_dict'\]"),
        (
            {"state_dict": prefixed("model."), "epoch": 3, "optimizer_states": []},
            "training, with epoch, optimizer_states",
        ),
        ({"model": prefixed("module."), "optimizer": {"state": {0: {"step": torch.zeros(1)}}}}, "with optimizer"),
        ({"checkpoint": {"net": weights()}}, r"its weights are in \['checkpoint'\]\['net'\]"),
    ],
)
def test_the_sentence_holds_a_command_that_makes_plain_weights(tmp_path, content, what) -> None:
    path = tmp_path / "given.pt"
    said = refusal(path, content)
    assert re.search(what, said)
    found = re.search(r'python -c "(.*)"', said)
    assert found is not None
    exec(found[1], {})
    load(tmp_path / "given_plain.pt")


@pytest.mark.slow
def test_the_command_runs_in_a_shell(tmp_path) -> None:
    found = re.search(r"(python -c \".*\")", refusal(tmp_path / "given.pt", prefixed("module.")))
    assert found is not None
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(found[1], shell=True, check=True, env=environment)
    load(tmp_path / "given_plain.pt")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({**weights(), "more": torch.zeros(1)}, "all weights of this network are there, and others besides"),
        ({"blocks.0.attn.qkv.lora_A.weight": torch.zeros(1)}, "low-rank updates"),
        ({"blocks.0.attn.qkv.linear_a_q.weight": torch.zeros(1)}, "low-rank updates"),
        ({"network": {"qkv.lora_a": torch.zeros(1)}, "optimizer": {}}, r"in \['network'\].*low-rank updates"),
        ({"image_encoder.trunk.patch_embed.weight": torch.zeros(1)}, "those of SAM 2"),
        ({"vision_encoder.layers.0.weight": torch.zeros(1)}, "Hugging Face"),
        ({"best": np.float64(0.5), "model": weights()}, "it holds numpy.*cannot be read without running code"),
        (torch.zeros(2), r"save model.state_dict\(\) alone"),
    ],
)
def test_what_cannot_be_mended_is_named(tmp_path, content, what) -> None:
    assert re.search(what, refusal(tmp_path / "w.pt", content))


@pytest.mark.parametrize(
    ("beginning", "what"),
    [
        (b"", "it is empty"),
        (b"\n <!DOCTYPE html><html>", "it is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x1f\x8b\x08\x00", "a gzip archive: unpack it"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"PK\x03\x04" + bytes(100), "incomplete"),
    ],
)
def test_first_bytes_tell_what_a_file_is(tmp_path, beginning, what) -> None:
    (tmp_path / "w.pth").write_bytes(beginning)
    assert what in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_short_is_refused(tmp_path, zipped) -> None:
    path = tmp_path / "w.pt"
    torch.save(weights(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-200])
    assert ("incomplete" if zipped else "damaged") in refusal(path)


def test_safetensors_are_loaded_as_strictly(tmp_path) -> None:
    path, state = tmp_path / "w.safetensors", weights()
    save_file(state, path)
    model = network()
    load_weights(model, path, "toy")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    save_file({**state, "0.weight": torch.full((3, 2), torch.nan)}, path)
    assert "NaN" in refusal(path)
    save_file({**state, "more": torch.zeros(1)}, path)
    assert "1 parameters differ, the first is more" in refusal(path)


def test_safetensors_that_are_damaged_are_refused(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(weights(), path)
    content = path.read_bytes()
    for size in (len(content) - 4, 40):
        path.write_bytes(content[:size])
        assert f"safetensors file that ends early ({size} of " in refusal(path)
    path.write_bytes(content.replace(b'"F32"', b'"F33"', 1))
    assert "is damaged" in refusal(path)


def test_other_archives_and_folders_are_named(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("weights.pth", "x")
    assert "a zip archive: unpack it" in refusal(tmp_path / "w.pth")
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "script.pt")
    assert "TorchScript" in refusal(tmp_path / "script.pt")
    assert "is a folder" in refusal(tmp_path)


# ---- other networks of this package ----------------------------------------------------------------------------------


def test_weights_of_another_variant_say_which(tmp_path) -> None:
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 2, 2, 1024)}, tmp_path / "l.pth")
    torch.save(build_segmentor(4, "plain").state_dict(), tmp_path / "segmentor.pt")
    torch.save(build_compact(**TINY).state_dict(), tmp_path / "sam.pt")
    for name, words in (("l.pth", "they are vit_l weights.*--sam_variant vit_l"), ("segmentor.pt", "bundle sam_sp")):
        with pytest.raises(UserError, match=words):
            build_sam("compact", tmp_path / name, **TINY)
    with pytest.raises(UserError, match="of architecture plain for 3 labels"):
        build_segmentor(4, "sam_sp", tmp_path / "segmentor.pt")
    with pytest.raises(UserError, match="those of a SAM"):
        build_segmentor(4, "sam_sp", tmp_path / "sam.pt")


def test_a_file_is_looked_at_before_a_large_network_is_built(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("monai_ext.networks.sam.sam_model_registry", {})
    (tmp_path / "w.pth").write_text("<html>")
    with pytest.raises(UserError, match="a web page"):
        build_sam("vit_h", tmp_path / "w.pth")
