"""The server that learns, on studies of a DICOMweb store: asked for, corrected and learned as files are."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
import sys
import time
import urllib.request
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from label.dicomweb_store import Store, serving
from monai_ext.data.images import read_geometry, read_label
from monai_ext.data.manifest import load_datalist
from monai_ext.data.phantoms import dicom, write_phantom_patient
from monai_ext.engines.online.journal import Journal
from monai_ext.label.layout import prepare_online
from monai_ext.label.server import infer, model_info, running, submit

BUNDLES = Path(__file__).parents[2] / "bundles"
OPTIONS = {"checkpoint": "compact_chaos", "device": "cpu", "base": 4, "crop": 32}
MODEL = "auxol"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
TOOL = f"""#!{sys.executable}
# in place of dcmqi's itkimage2segimage, which writes the voxels too
import sys
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
one = pydicom.Dataset()
one.SOPClassUID, one.SOPInstanceUID, one.Modality = "{SEGMENTATION}", generate_uid(), "SEG"
one.StudyInstanceUID, one.SeriesInstanceUID = generate_uid(), generate_uid()
one.file_meta = pydicom.dataset.FileMetaDataset()
one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
one.is_little_endian, one.is_implicit_VR = True, False
one.save_as(given["--outputDICOM"], write_like_original=False)
"""


def save(path: Path, elements: dict) -> None:
    """Write a slice with the pydicom of MONAI Label's environment."""
    one = dicom._dataset(**{keyword: value for keyword, value in elements.items() if value is not None})
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    one.is_little_endian, one.is_implicit_VR = True, False
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, write_like_original=False)


def on_grid(truth: np.ndarray, affine: np.ndarray, other: nib.Nifti1Image) -> np.ndarray:
    """Bring a mask to the grid of another image of the same voxels, stored in another order."""
    steps = np.linalg.inv(affine) @ other.affine
    indices = np.indices(other.shape).reshape(3, -1)
    found = np.rint(steps[:3, :3] @ indices + steps[:3, 3:]).astype(int)
    return truth[tuple(found)].reshape(other.shape)


@pytest.fixture
def tools(tmp_path) -> str:
    """A PATH with dcmqi's tool, or with one in its place: the server would fetch it."""
    if shutil.which("itkimage2segimage"):
        return os.environ["PATH"]
    tool = tmp_path / "bin" / "itkimage2segimage"
    tool.parent.mkdir()
    tool.write_text(TOOL)
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return f"{tool.parent}{os.pathsep}{os.environ['PATH']}"


def test_a_dicom_study_is_asked_for_corrected_and_learned(tmp_path, tools, monkeypatch):
    monkeypatch.setattr(dicom, "require_extra", lambda: None)  # MONAI Label's environment has an older pydicom alone
    monkeypatch.setattr(dicom, "_save", save)
    datalist = write_phantom_patient(tmp_path / "patient")
    case = load_datalist(datalist).cases[0]
    volume, geometry = nib.load(case.image), read_geometry(case.image)
    pixels = np.asarray(volume.dataobj).astype(np.float32)
    store = Store(dicom.write_ct_series(tmp_path / "series", pixels, geometry.affine, modality="MR", intercept=0.0))
    uid = str(store.instances[0].SeriesInstanceUID)
    content = json.loads(datalist.read_text())
    content["cases"] = [{**one, "image": str(datalist.parent / one["image"])} for one in content["cases"][1:]]
    for one in content["cases"]:
        one.pop("label")
    (tmp_path / "list.json").write_text(json.dumps(content))
    options = {**OPTIONS, "sam_root": str(BUNDLES / "p2sam")}
    app = prepare_online(tmp_path / "list.json", tmp_path, BUNDLES / "auxol", options)
    env = {
        "PATH": tools,
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality": "MR"}',
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache"),
    }
    with serving(store) as address, running(app, address, tmp_path / "log", MODEL, env) as url:
        with urllib.request.urlopen(f"{url}/datastore/image?image={uid}", timeout=60) as answer:
            image = nib.Nifti1Image.from_bytes(gzip.decompress(answer.read()))
        truth = on_grid(read_label(case.label), geometry.affine, image)
        where = np.argwhere(truth == 1)
        k = int(np.median(where[:, 2]))
        of_slice = where[where[:, 2] == k][:, :2]
        low, high = of_slice.min(axis=0), of_slice.max(axis=0)
        roi = [int(x) for pair in zip(low, high, strict=True) for x in pair] + [k, k]
        mask = np.asarray(ask(url, uid, roi).dataobj)
        assert mask.shape == truth.shape
        assert 2 * ((mask == 1) & (truth == 1))[..., k].sum() > 0.5 * ((mask == 1) | (truth == 1))[..., k].sum()
        nib.save(nib.Nifti1Image(truth.astype(np.uint8), image.affine), tmp_path / "correction.nii.gz")
        said = submit(url, uid, tmp_path / "correction.nii.gz", params={"label_info": [{"name": "lesion", "idx": 1}]})
        assert said["online"]["status"] == "queued"
        end = time.monotonic() + 120
        while model_info(url, MODEL)["online"]["waiting"] and time.monotonic() < end:
            time.sleep(0.1)
        status = model_info(url, MODEL)["online"]
        assert status["last"]["refused"] == []
        assert status["learned"]["lesion"] == 1
    journal = Journal(tmp_path / "learning" / "learners" / "lesion", read_only=True)
    assert journal.entries[0].about["case"]["case"] == uid
    assert {one.Modality for one in store.instances} == {"MR", "SEG"}  # the label is in the store as well


def ask(url: str, study: str, roi: list[int]) -> nib.Nifti1Image:
    body = infer(url, study, {"roi": roi, "structure": "lesion"}, bundle=MODEL)
    return nib.Nifti1Image.from_bytes(gzip.decompress(body))
