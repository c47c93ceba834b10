"""Requests over HTTP to a real MONAI Label server."""

from __future__ import annotations

import gzip
import io
import json
import urllib.request
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_ext.errors import UserError
from monai_ext.label.server import infer, running, submit

BUNDLES = Path(__file__).parents[2] / "bundles"
CPU = {"device": "cpu"}
SHAPE = (26, 20, 5)
SPOT = (20, 4, 4)  # bright, see conftest.py


def volume(body: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(body))


def voxels(body: bytes) -> np.ndarray:
    return np.asarray(volume(body).dataobj)


def details(served, study: str, bundle: str = "p2sam", **params) -> dict:
    return json.loads(infer(served.url, study, {**CPU, **params}, output="json", bundle=bundle))


def refused(served, study: str, bundle: str = "p2sam", **params) -> str:
    """The sentence of an error answer; afterwards the server still serves."""
    with pytest.raises(UserError, match="answered 422") as error:
        infer(served.url, study, {**CPU, **params}, bundle=bundle)
    with urllib.request.urlopen(f"{served.url}/info/", timeout=30) as answer:
        assert answer.status == 200
    said = str(error.value)
    return str(json.loads(said[said.index("{") :])["detail"])


def run_bundle(served, output_dir: Path) -> Path:
    """What `python -m monai.bundle run` writes in this environment."""
    options = {"bundle_root": str(served.bundle), "datalist": str(served.datalist), "output_dir": str(output_dir)}
    config = str(served.bundle / "configs" / "inference.yaml")
    workflow = ConfigWorkflow(config, logging_file=False, workflow_type="infer", device="cpu", **options)
    workflow.initialize()
    workflow.run()
    return output_dir / "masks"


# ------------------------------------------------------------------------------------------------------- volumes


def test_the_mask_is_that_of_the_bundle(served, tmp_path):
    content = json.loads(served.datalist.read_text())
    content["cases"] = [case for case in content["cases"] if case["patient"] == "a"]
    (served.datalist.parent / "a.json").write_text(json.dumps(content))
    served = type(served)(served.url, served.folder, served.bundle, served.datalist.parent / "a.json")
    masks = run_bundle(served, tmp_path)
    for study in ("a1", "a2"):
        mask, expected = volume(infer(served.url, study, CPU)), nib.load(masks / f"{study}.nii.gz")
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
        assert np.asarray(mask.dataobj).any()


def test_an_answer_names_labels_and_reference(served):
    told = details(served, "a1")
    assert told["labels"] == {"disc": 1, "odd ring": 3}
    assert told["reference"] == ["a0"]
    with urllib.request.urlopen(f"{served.url}/info/", timeout=30) as answer:
        model = json.load(answer)["models"]["p2sam"]
    assert model["labels"] == {"disc": 1, "odd ring": 3}  # what viewers show
    assert model["dimension"] == 3


def test_a_named_reference_serves_another_patient(served):
    assert details(served, "b1", reference={"study": "a0", "tag": "final"})["labels"] == {"label_1": 1, "label_3": 3}
    np.testing.assert_array_equal(
        voxels(infer(served.url, "a1", {**CPU, "reference": "a0"})), voxels(infer(served.url, "a1", CPU))
    )


@pytest.mark.parametrize("bundle", ["apscl", "prosam"])
def test_a_support_is_taken_from_an_annotated_study(served, tmp_path, bundle):
    """The request names a study of another patient; the mask is that of a run whose list names it."""
    mask = volume(infer(served.url, "b1", {**CPU, "reference": "a0"}, bundle=bundle))
    content = json.loads(served.datalist.read_text())
    case = next(case for case in content["cases"] if case["case"] == "b1")
    case |= {"reference_image": "a0.nii.gz", "reference_label": "a0_label.nii.gz"}
    datalist = served.datalist.parent / "b1.json"
    datalist.write_text(json.dumps({**content, "cases": [case]}))
    alone = type(served)(served.url, served.folder, BUNDLES / bundle, datalist)
    expected = nib.load(run_bundle(alone, tmp_path) / "b1.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
    assert np.asarray(mask.dataobj).any()
    assert details(served, "b1", bundle=bundle, reference="a0")["reference"] == ["a0"]


def test_prosam_answers_how_far_drawn_masks_agree(served):
    answer = details(served, "a1", bundle="prosam")
    assert answer["reference"] == ["a0"]
    assert set(answer["agreement"]) == {"disc", "odd ring"}
    assert all(value is None or 0 <= value <= 1 for value in answer["agreement"].values())
    assert "heeds no clicks" in refused(served, "a1", bundle="prosam", foreground=[[2, 2, 2]])


@pytest.mark.parametrize(
    ("study", "params", "words"),
    [
        ("b1", {}, ("b1", "'b'", "no annotated study")),
        ("a0", {}, ("a0", "no annotated visit before it")),
        ("a1", {"reference": {"study": "nobody"}}, ("'nobody'", "is no study")),
        ("a1", {"reference": {"study": "a0", "tag": "draft"}}, ("'a0'", "'draft'", "final")),
        ("a1", {"foreground": [[400, 2, 2]]}, ("lies outside", "a1.nii.gz")),
        ("a1", {"foreground": "here"}, ("foreground", "voxel indices")),
        ("a1", {"foreground": [[2, 2, 2]], "structure": "square"}, ("'square'", "disc, odd ring")),
        ("nobody", {}, ("no image is named",)),
    ],
)
def test_a_mistake_is_a_sentence_and_the_server_lives_on(served, study, params, words):
    said = refused(served, study, **params)
    assert all(word in said for word in words), said


def test_a_submitted_label_serves_the_next_visit(served, tmp_path):
    label = np.zeros(SHAPE, np.uint8)
    label[8:15, 5:12] = 1
    affine = nib.load(served.folder / "images" / "b0.nii.gz").affine
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "b0.nii.gz")
    submit(served.url, "b0", tmp_path / "b0.nii.gz")
    try:
        told = details(served, "b1")
        assert (told["labels"], told["reference"]) == ({"disc": 1}, ["b0"])
        first = voxels(infer(served.url, "b1", CPU))
        assert set(np.unique(first)) <= {0, 1}
        label[:] = 0
        label[16:24, 10:18] = 1  # corrected: the cached reference is out of date
        nib.save(nib.Nifti1Image(label, affine), tmp_path / "b0.nii.gz")
        submit(served.url, "b0", tmp_path / "b0.nii.gz")
        assert not np.array_equal(first, voxels(infer(served.url, "b1", CPU)))
    finally:
        request = urllib.request.Request(f"{served.url}/datastore/label?id=b0&tag=final", method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()


def test_a_click_changes_its_own_slice_alone(served):
    plain = voxels(infer(served.url, "a1", CPU))
    for k in (0, 3):
        clicked = voxels(infer(served.url, "a1", {**CPU, "foreground": [[5, 15, k]], "structure": "disc"}))
        changed = np.flatnonzero((clicked != plain).any(axis=(0, 1)))
        assert changed.tolist() == [k]
    np.testing.assert_array_equal(voxels(infer(served.url, "a1", CPU)), plain)  # clicks do not linger


def test_a_click_lands_on_its_voxel(served):
    """The volume is neither RAS nor upright nor isotropic, and the reference is silent on that slice."""
    plain = voxels(infer(served.url, "a1", CPU, bundle="trained"))
    assert not plain[..., SPOT[2]].any()
    clicks = {"foreground": [list(SPOT)], "structure": "disc"}
    clicked = voxels(infer(served.url, "a1", {**CPU, **clicks}, bundle="trained"))
    np.testing.assert_array_equal(clicked[..., : SPOT[2]], plain[..., : SPOT[2]])
    spot = clicked[..., SPOT[2]] == 1
    assert spot[SPOT[:2]]
    centre = np.argwhere(spot).mean(axis=0)
    assert np.abs(centre - SPOT[:2]).max() < 1.5, centre
    assert spot.sum() < 80  # 38 voxels are bright


# --------------------------------------------------------------------------------------------------------- frames


def test_png_frames_keep_values_and_size(served_frames, tmp_path):
    masks = run_bundle(served_frames, tmp_path)
    for study in ("phantom_frame002", "phantom_frame003"):
        mask = Image.open(io.BytesIO(infer(served_frames.url, study, CPU)))
        assert mask.size == (384, 288)
        np.testing.assert_array_equal(np.asarray(mask), np.asarray(Image.open(masks / f"{study}.png")))
    assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_a_click_on_a_frame(served_frames):
    plain = infer(served_frames.url, "phantom_frame002", CPU)
    clicked = infer(served_frames.url, "phantom_frame002", {**CPU, "background": [[370, 20]]})
    assert Image.open(io.BytesIO(clicked)).size == (384, 288)
    assert clicked != plain


# ----------------------------------------------------------------------------------------------------- strictness


def test_a_wrong_checkpoint_stops_the_first_request(served):
    assert served.missing in refused(served, "a1", bundle="broken")
    assert "does not hold this model's weights" in refused(served, "a1", bundle="broken")  # nor does it serve later
    assert voxels(infer(served.url, "a1", CPU)).any()


def test_without_the_package_the_server_does_not_start(served, tmp_path):
    (tmp_path / "monai_ext").mkdir()
    (tmp_path / "monai_ext" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'monai_ext'\")\n")
    with (
        pytest.raises(UserError, match=r"ended with exit code [1-9].*monai_ext"),
        running(served.app, served.folder / "studies", tmp_path / "log", env={"PYTHONPATH": str(tmp_path)}),
    ):
        pass
