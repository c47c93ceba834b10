"""What is given away: zips that are the same twice, cards with the licence of the weights, the wheel's weights."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from monai_ext.data.provenance import TrainingData, WeightRecord, write_record

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
    path.write_bytes(name.encode())
    data = TrainingData(dataset="D", patients=["p1"], labels="dense", licence=licence)
    record = WeightRecord(name=name, variant="compact", datasets=[data], command="make", licence=licence, sha256="")
    write_record(path, record)


def test_a_zip_is_the_same_twice_and_holds_no_results(release, bundle, tmp_path):
    add_weights(bundle, "one", "CC BY 3.0")
    (bundle / "models" / "model.pt").symlink_to("one.pt")
    first = release.write_zip(bundle, tmp_path / "a")
    second = release.write_zip(bundle, tmp_path / "b")
    assert first.name == "small_v1.2.3.zip"
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = set(archive.namelist())
        assert archive.read("small/models/model.pt") == b"one"
    assert names == {
        f"small/{name}" for name in ("configs/metadata.json", "models/model.pt", "models/one.pt", "models/one.json")
    }
    digest, name = (tmp_path / "a" / "small_v1.2.3.zip.sha256").read_text().split()
    assert (digest, name) == (release.sha256_of(first), first.name)


def test_the_card_has_the_strictest_licence_of_the_weights(release, bundle):
    assert "\nlicense: apache-2.0\n" in release.model_card(bundle)
    add_weights(bundle, "one", "CC BY 3.0")
    assert "\nlicense: cc-by-3.0\n" in release.model_card(bundle)
    add_weights(bundle, "two", "CC BY-NC-SA 4.0")
    assert "\nlicense: cc-by-nc-sa-4.0\n" in release.model_card(bundle)
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
