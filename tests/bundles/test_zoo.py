"""What the MONAI model zoo checks of every bundle, offline."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out

from monai_ext.data.provenance import read_record, verify_weights
from monai_ext.errors import UserError
from monai_ext.networks.dual_branch_unet import build_segmentor

BUNDLES = sorted(path for path in (Path(__file__).parents[2] / "bundles").iterdir() if path.is_dir())
WITH_SUPPORT = ("apscl",)  # their networks do not segment an image alone
SCHEMA = {
    "type": "object",
    "required": [
        *("version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
        *("task", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "changelog": {"type": "object"},
        "required_packages_version": {"type": "object"},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {
                "inputs": {"type": "object", "required": ["image"]},
                "outputs": {
                    "type": "object",
                    "required": ["pred"],
                    "properties": {"pred": {"type": "object", "required": ["channel_def"]}},
                },
            },
        },
    },
}


def name(bundle: Path) -> str:
    return bundle.name


@pytest.mark.parametrize("bundle", BUNDLES, ids=name)
def test_required_files(bundle):
    for file in ("LICENSE", "configs/metadata.json", "configs/inference.yaml", "docs/README.md"):
        assert (bundle / file).is_file(), file
    assert (bundle / "models" / "model.pt").is_file()
    assert all(path.stat().st_size <= 25 * 2**20 for path in bundle.rglob("*") if path.is_file())


@pytest.mark.parametrize("bundle", BUNDLES, ids=name)
def test_metadata(bundle, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    content = json.loads((bundle / "configs" / "metadata.json").read_text())
    (tmp_path / "metadata.json").write_text(json.dumps({**content, "schema": schema.as_uri()}))
    verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema))
    assert content["version"] in content["changelog"]
    assert next(iter(content["network_data_format"]["inputs"])) == "image"
    assert next(iter(content["network_data_format"]["outputs"])) == "pred"


def verify(bundle: Path) -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.yaml"),
        device="cpu",
        bundle_root=str(bundle),
    )


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b.name not in WITH_SUPPORT], ids=name)
def test_the_network_gives_what_its_metadata_says(bundle):
    verify(bundle)


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b.name in WITH_SUPPORT], ids=name)
def test_a_network_that_needs_a_support_says_so(bundle):
    with pytest.raises(UserError, match="segments an image only with a support"):
        verify(bundle)


def export(bundle: str, path: Path, **options: object) -> None:
    folder = next(path for path in BUNDLES if path.name == bundle)
    ckpt_export(
        net_id="network_def",
        filepath=str(path),
        config_file=str(folder / "configs" / "inference.yaml"),
        meta_file=str(folder / "configs" / "metadata.json"),
        ckpt_file=str(folder / "models" / "model.pt"),
        bundle_root=str(folder),
        **options,
    )


def test_the_segmentor_is_exported_by_tracing(tmp_path):
    export("sam_sp", tmp_path / "model.ts", use_trace=True)
    exported = torch.jit.load(tmp_path / "model.ts").eval()
    folder = next(path for path in BUNDLES if path.name == "sam_sp")
    network = build_segmentor(4, "sam_sp", folder / "models" / "model.pt")
    for shape in ((1, 1, 256, 256), (3, 1, 64, 96)):
        image = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), network(image))
    with pytest.raises(UserError, match="add --use_trace True"):
        export("sam_sp", tmp_path / "scripted.ts")
    assert not (tmp_path / "scripted.ts").exists()


@pytest.mark.parametrize("options", [{}, {"use_trace": True, "input_shape": [1, 3, 256, 256]}])
def test_a_promptable_network_is_not_exported(tmp_path, options):
    with pytest.raises(UserError, match="alone it would segment without prompts"):
        export("p2sam", tmp_path / "model.ts", sam_variant="compact_lite", **options)  # that of model.pt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b.name in ("auxol", "p2sam", "prosam")], ids=name)
def test_a_zip_has_weights_with_their_record_where_the_checkout_has_a_link(bundle, tmp_path):
    """An unpacked zip stands alone: its ``model.pt`` is a file, and is known by the record beside it."""
    spec = importlib.util.spec_from_file_location("release_bundles", BUNDLES[0].parents[1] / "release" / "bundles.py")
    release = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(release)
    with zipfile.ZipFile(release.write_zip(bundle, tmp_path)) as archive:
        archive.extractall(tmp_path)
    weights = tmp_path / bundle.name / "models" / "model.pt"
    assert not weights.is_symlink()
    record = read_record(weights)
    assert record is not None
    assert record == read_record((bundle / "models" / "model.pt").resolve())
    verify_weights(weights, record)
    if bundle.name == "p2sam":
        verify(tmp_path / bundle.name)
