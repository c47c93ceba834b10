"""Tests of monai_ext.networks.precision."""

from __future__ import annotations

import pytest
import torch

from monai_ext.errors import UserError
from monai_ext.networks import precision
from monai_ext.networks.precision import choose_precision, has_bfloat16
from monai_ext.networks.sam import build_compact


@pytest.fixture(autouse=True)
def _fast_products(monkeypatch) -> None:
    monkeypatch.setattr(precision, "is_onednn_exact", lambda: True)
    monkeypatch.setattr(precision, "is_packing_exact", lambda: True)


@pytest.mark.parametrize("asked", [None, "float32"])
def test_float32_is_the_default(asked, capsys) -> None:
    assert choose_precision(asked) == "float32"
    assert not capsys.readouterr().err


WITHOUT_ONEDNN = ("is_onednn_exact", "is_packing_exact")


def test_a_vit_on_a_cpu_without_fast_products_is_told(monkeypatch, capsys) -> None:
    for missing in WITHOUT_ONEDNN:
        monkeypatch.setattr(precision, missing, lambda: False)
    assert choose_precision(None, "cpu", "vit_b") == "float32"
    assert capsys.readouterr().err.startswith("note: oneDNN's float32 products are not at hand here: SAM runs slower")
    assert choose_precision(None, "cuda", "vit_b") == "float32"
    assert choose_precision(None, "cpu", "compact") == choose_precision(None) == "float32"
    assert not capsys.readouterr().err


@pytest.mark.parametrize("missing", WITHOUT_ONEDNN)
def test_one_way_to_fast_products_is_enough(missing, monkeypatch, capsys) -> None:
    """A processor with AMX has no exact oneDNN products, and is as fast."""
    monkeypatch.setattr(precision, missing, lambda: False)
    assert choose_precision(None, "cpu", "vit_h") == "float32"
    assert not capsys.readouterr().err


def test_bfloat16_where_the_machine_has_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    assert choose_precision("bfloat16", "cpu") == "bfloat16"
    assert not capsys.readouterr().err


def test_a_machine_without_it_runs_in_float32_and_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert choose_precision("bfloat16", "cpu") == "float32"
    assert capsys.readouterr().err == "note: this cpu has no bfloat16 arithmetic: the encoder runs in float32\n"


def test_bfloat16_needs_onednn(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bfloat16("cpu")
    assert not has_bfloat16("mps")


@pytest.mark.parametrize("asked", ["bf16", "float16", 16])
def test_another_precision_is_refused(asked) -> None:
    with pytest.raises(UserError, match="choose one of float32, bfloat16"):
        choose_precision(asked)


@torch.no_grad()
def test_the_encoder_alone_runs_in_bfloat16() -> None:
    torch.manual_seed(0)
    network = build_compact(image_size=64, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=32).eval()
    image = torch.randint(0, 256, (1, 3, 50, 64)).float()
    exact = network.encode(image).features
    network.precision = "bfloat16"
    rounded = network.encode(image).features
    assert rounded.dtype == torch.float32
    assert 1e-4 < (rounded - exact).abs().mean() / exact.abs().mean() < 0.05
    assert {p.dtype for p in network.parameters()} == {torch.float32}
