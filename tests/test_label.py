"""Studies and app for MONAI Label, as far as they need no MONAI Label; tests/label has its servers."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_ext.data.studies import Studies
from monai_ext.errors import UserError
from monai_ext.label import server
from monai_ext.label.__main__ import main
from monai_ext.label.demo import _stay, compare
from monai_ext.label.layout import prepare
from monai_ext.label.server import running, server_command

LABELS = {"disc": 1, "odd ring": 3}


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(values.astype(np.uint8), np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def datalist(tmp_path) -> Path:
    """Two visits of one patient, the first annotated, beside the list."""
    folder = tmp_path / "images"
    folder.mkdir()
    cases = []
    for visit in (0, 1):
        write(folder / f"image{visit}.nii.gz", np.full((3, 4, 2), visit))
        cases.append({"case": f"visit{visit}", "patient": "a", "visit": visit, "image": f"image{visit}.nii.gz"})
    write(folder / "label.nii.gz", np.ones((3, 4, 2)))
    cases[0]["label"] = "label.nii.gz"
    path = folder / "list.json"
    path.write_text(json.dumps({"dataset": "small", "modality": "MR", "labels": LABELS, "cases": cases}))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """An output folder that MONAI Label's app has been fetched into."""
    app = tmp_path / "served" / "apps" / "monaibundle"
    app.mkdir(parents=True)
    (app / "main.py").touch()
    return tmp_path / "served"


@pytest.fixture
def bundle(tmp_path) -> Path:
    bundle = tmp_path / "small_bundle"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "models").mkdir()
    (bundle / "configs" / "inference.yaml").write_text("device: cpu\n")
    formats = {
        "inputs": {"image": {"spatial_shape": [256, 256]}},
        "outputs": {"pred": {"channel_def": {"0": "background"}}},
    }
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": formats}))
    return bundle


def test_cases_become_studies_and_their_labels_final_ones(datalist, folder, bundle):
    prepare(datalist, folder, bundle)
    studies = folder / "studies"
    assert (studies / "visit1.nii.gz").resolve() == (datalist.parent / "image1.nii.gz").resolve()
    assert (studies / "labels" / "final" / "visit0.nii.gz").read_bytes() == (
        datalist.parent / "label.nii.gz"
    ).read_bytes()
    assert not (studies / "labels" / "final" / "visit1.nii.gz").exists()
    found = Studies(studies)({"image_path": str(studies / "visit1.nii.gz")})
    assert found is not None
    assert (found["reference"], found["labels"]) == (["visit0"], {"disc": 1})


def test_a_second_time_keeps_what_was_annotated_since(datalist, folder, bundle):
    prepare(datalist, folder, bundle)
    saved = write(folder / "studies" / "labels" / "final" / "visit0.nii.gz", np.full((3, 4, 2), 3)).read_bytes()
    prepare(datalist, folder, bundle)
    assert (folder / "studies" / "labels" / "final" / "visit0.nii.gz").read_bytes() == saved


def test_another_study_of_the_same_name_is_not_replaced(datalist, folder, bundle):
    prepare(datalist, folder, bundle)
    other = folder / "studies" / "visit1.nii.gz"
    other.unlink()
    write(other, np.zeros((3, 4, 2)))
    with pytest.raises(UserError, match=r"visit1\.nii\.gz is another file than .*image1\.nii\.gz: choose another"):
        prepare(datalist, folder, bundle)


def test_viewers_get_the_data_lists_names_and_three_dimensions(datalist, folder, bundle):
    served = prepare(datalist, folder, bundle) / "model" / bundle.name
    formats = json.loads((served / "configs" / "metadata.json").read_text())["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "disc", "3": "odd ring"}
    assert formats["inputs"]["image"]["spatial_shape"] == [256, 256, 1]
    own = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    assert own["outputs"]["pred"]["channel_def"] == {"0": "background"}
    assert (served / "models").resolve() == (bundle / "models").resolve()


def test_the_server_reads_the_weights_that_are_named(datalist, folder, bundle):
    (bundle / "models" / "heart.pt").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"no weights 'liver' in .*models: choose one of heart\."):
        prepare(datalist, folder, bundle, "liver")
    for _ in range(2):
        served = prepare(datalist, folder, bundle, "heart") / "model" / bundle.name / "models"
        assert [path.name for path in served.iterdir()] == ["model.pt"]
        assert (served / "model.pt").resolve() == (bundle / "models" / "heart.pt").resolve()


def test_frames_stay_two_dimensional(folder, bundle, tmp_path):
    Image.fromarray(np.zeros((4, 3), np.uint8)).save(tmp_path / "frame.png")
    cases = [{"case": "frame", "patient": "a", "visit": 0, "image": "frame.png"}]
    (tmp_path / "list.json").write_text(json.dumps({"dataset": "small", "labels": {"polyp": 255}, "cases": cases}))
    served = prepare(tmp_path / "list.json", folder, bundle) / "model" / bundle.name
    formats = json.loads((served / "configs" / "metadata.json").read_text())["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == [256, 256]
    assert (folder / "studies" / "frame.png").is_symlink()


# ------------------------------------------------------------------------------------------------------- servers


def test_the_server_is_for_this_machine_alone(monkeypatch):
    monkeypatch.setattr(server, "monailabel_command", lambda: ["monailabel"])
    words = server_command(Path("app"), Path("studies"), 8001)
    pairs = set(pairwise(words))
    assert {("--host", "127.0.0.1"), ("--port", "8001"), ("zoo_source", "local"), ("models", "p2sam")} <= pairs


def test_without_monai_label_the_sentence_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="MONAI Label is not installed for"):
        server_command(Path("app"), Path("studies"), 8001)


def test_a_server_that_ends_early_is_reported_with_what_it_said(monkeypatch, tmp_path):
    code = "print('first'); raise SystemExit('ModuleNotFoundError: No module named itk')"
    monkeypatch.setattr(server, "monailabel_command", lambda: [sys.executable, "-c", code])
    with (
        pytest.raises(UserError, match=r"ended with exit code 1: ModuleNotFoundError: No module named itk \(all of it"),
        running(tmp_path, tmp_path, tmp_path / "log"),
    ):
        pass


def test_a_server_that_does_not_answer_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "monailabel_command", lambda: [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(server, "SECONDS_TO_START", 0.5)
    with pytest.raises(UserError, match="did not answer"), running(tmp_path, tmp_path, tmp_path / "log"):
        pass


# --------------------------------------------------------------------------------------------------------- masks


def test_masks_are_compared_by_voxel_and_affine(tmp_path):
    values = np.zeros((3, 4, 2))
    values[1, 1] = 1
    one = write(tmp_path / "one.nii.gz", values)
    assert compare(one, write(tmp_path / "same.nii.gz", values)) == 0
    moved = np.eye(4)
    moved[0, 3] = 0.01
    with pytest.raises(UserError, match=r"affines of .* differ by 0\.01 mm"):
        compare(one, write(tmp_path / "moved.nii.gz", values, moved))
    values[2, 2, 0] = 1
    with pytest.raises(UserError, match="1 voxels differ"):
        compare(one, write(tmp_path / "other.nii.gz", values))
    with pytest.raises(UserError, match="another shape"):
        compare(one, write(tmp_path / "small.nii.gz", values[1:]))
    empty = write(tmp_path / "empty.nii.gz", np.zeros((3, 4, 2)))
    with pytest.raises(UserError, match="it is empty"):
        compare(empty, empty)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "no data list: name one, or --demo"), (["x.json", "--bundle", "nowhere"], "nowhere is no bundle")],
)
def test_mistakes_on_the_command_line(arguments, sentence, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(UserError, match=sentence):
        main(arguments)


class Server:
    """A process that ends with an exception or by itself."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def wait(self) -> None:
        if self.error is not None:
            raise self.error


def test_the_demo_stays_up_until_it_is_interrupted(capsys):
    _stay("http://127.0.0.1:8000", Server(KeyboardInterrupt()))
    assert "stop the server with Ctrl-C\nstopped" in capsys.readouterr().out
    with pytest.raises(UserError, match="has ended by itself"):
        _stay("http://127.0.0.1:8000", Server(None))
