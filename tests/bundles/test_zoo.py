"""What the MONAI model zoo checks of every bundle, offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.bundle import verify_metadata, verify_net_in_out

BUNDLES = sorted(path for path in (Path(__file__).parents[2] / "bundles").iterdir() if path.is_dir())
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


@pytest.mark.parametrize("bundle", BUNDLES, ids=name)
def test_the_network_gives_what_its_metadata_says(bundle):
    configs = bundle / "configs"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.yaml"),
        device="cpu",
        bundle_root=str(bundle),
    )
