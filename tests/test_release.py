"""What is given away: zips that are the same twice, cards with the licence of the weights, the wheel's weights."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from monai_ext.data.provenance import TrainingData, WeightRecord, read_record, write_record
from monai_ext.files import sha256_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release_bundles", ROOT / "release" / "bundles.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundle(tmp_path) -> Path:
    folder = tmp_path / "small"
    for part in ("configs", "models", "docs/results"):
        (folder / part).mkdir(parents=True)
    about = {"name": "Small", "version": "1.2.3", "description": "It is small.", "references": ["A paper."]}
    (folder / "configs" / "metadata.json").write_text(json.dumps({**about, "intended_use": "Research only."}))
    (folder / "docs" / "results" / "metrics.csv").touch()
    return folder


def add_weights(bundle: Path, name: str, licence: str) -> None:
    path = bundle / "models" / f"{name}.pt"
    torch.save({"w": torch.zeros(3)}, path)
    data = TrainingData(dataset="D", patients=["p1"], labels="dense", licence=licence)
    record = WeightRecord(name=name, variant="compact", datasets=[data], command="make", licence=licence, sha256="")
    write_record(path, record.model_copy(update={"sha256": sha256_of(path)}))


MODELS = {"model.pt", "model.json", "one.pt", "one.json"}


def test_a_zip_is_the_same_twice_and_holds_no_results(release, bundle, tmp_path):
    add_weights(bundle, "one", "CC BY 3.0")
    (bundle / "models" / "model.pt").symlink_to("one.pt")
    first = release.write_zip(bundle, tmp_path / "a")
    second = release.write_zip(bundle, tmp_path / "b")
    assert first.name == "small_v1.2.3.zip"
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = set(archive.namelist())
        one = (bundle / "models" / "one.pt").read_bytes()
        assert archive.read("small/models/model.pt") == archive.read("small/models/one.pt") == one
        assert archive.read("small/models/model.json") == archive.read("small/models/one.json")
    assert names == {
        f"small/{name}" for name in ("configs/metadata.json", *(f"models/{one}" for one in sorted(MODELS)))
    }
    digest, name = (tmp_path / "a" / "small_v1.2.3.zip.sha256").read_text().split()
    assert (digest, name) == (release.sha256_of(first), first.name)


def test_the_hubs_folder_holds_safetensors_besides(release, bundle, tmp_path):
    add_weights(bundle, "one", "CC BY 3.0")
    (bundle / "models" / "model.pt").symlink_to("one.pt")
    folder = release.write_hub_folder(bundle, tmp_path / "hub")
    assert {path.name for path in (folder / "models").iterdir()} == MODELS | {"one.safetensors", "model.safetensors"}
    assert read_record(folder / "models" / "one.safetensors") == read_record(bundle / "models" / "one.pt")
    assert "models/NAME.safetensors" in (folder / "README.md").read_text()
    assert not list(bundle.rglob("*.safetensors"))


def test_the_card_tells_the_results_of_the_method_on_test_patients(release, bundle):
    for name, algorithm in (("all", "small"), ("validation", "small"), ("other", "rival")):
        told = {"task": "D", "algorithm": algorithm, "n_patients": 4}
        told["macro"] = {"dice": {"mean": 0.51234, "ci_low": 0.4, "ci_high": 0.6}}
        (bundle / "docs" / "results" / name).mkdir()
        (bundle / "docs" / "results" / name / "summary.json").write_text(json.dumps(told))
    card = release.model_card(bundle)
    assert "| D | 4 | 0.512 [0.400, 0.600] | `docs/results/all` |" in card
    assert card.count("| D |") == 1


def test_the_card_has_the_strictest_licence_of_the_weights(release, bundle):
    assert "\nlicense: apache-2.0\n" in release.model_card(bundle)
    add_weights(bundle, "one", "CC BY 3.0")
    assert "\nlicense: cc-by-3.0\n" in release.model_card(bundle)
    add_weights(bundle, "two", "CC BY-NC-SA 4.0")
    assert "\nlicense: cc-by-nc-sa-4.0\n" in release.model_card(bundle)
    (bundle / "models" / "two.pt").rename(bundle.parent / "two.pt")
    (bundle / "models" / "two.json").rename(bundle.parent / "two.json")
    assert "\nlicense: cc-by-3.0\n" in release.model_card(bundle)
    (bundle / "models" / "model.pt").symlink_to(bundle.parent / "two.pt")  # another bundle's: given away as well
    assert "\nlicense: cc-by-nc-sa-4.0\n" in release.model_card(bundle)
    (bundle / "models" / "model.pt").unlink()
    add_weights(bundle, "three", "unknown")
    with pytest.raises(ValueError, match="licence 'unknown' has no name"):
        release.model_card(bundle)


def test_no_licence_of_the_wheels_weights_limits_their_use():
    assignments = [node for node in ast.parse((ROOT / "setup.py").read_text()).body if isinstance(node, ast.Assign)]
    free = next(ast.literal_eval(node.value) for node in assignments if node.targets[0].id == "FREE")
    assert not any("NC" in licence for licence in free)


def test_the_constraints_fit_what_setup_asks_for():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"] + config["options.extras_require"]["dicom"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    fixed = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for requirement in map(Requirement, wanted.split("\n")[1:]):
        assert requirement.specifier.contains(fixed[canonicalize_name(requirement.name)]), requirement
