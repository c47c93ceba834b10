"""Measures as a structured report, read by highdicom and by pydicom."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom.export import main
from monai_ext.data.dicom.sr_writer import Measured, read_sr
from monai_ext.data.phantoms.dicom import write_ct_series
from monai_ext.errors import UserError

AFFINE = np.diag([-2.0, -2.0, 4.0, 1.0])
TABLE = """case,patient,visit,label,volume_ml,change_percent,longest_mm,perpendicular_mm,parts,slices
scan,P1,1,tumour,0.768,,12.8,8.2,1,2
scan,P1,1,left kidney,0.000,,0.0,0.0,0,0
"""


@pytest.fixture
def run(tmp_path) -> Path:
    """Outputs of a case of one DICOM series; the kidney was not found."""
    files = write_ct_series(tmp_path / "ct", np.zeros((12, 10, 5)), AFFINE, patient_id="P1")
    mask = np.zeros((12, 10, 5), dtype=np.uint8)
    mask[2:8, 3:7, 1:3] = 1
    for folder in ("masks", "data"):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / folder / "scan.nii.gz")
    series = {"folder": str(tmp_path / "ct"), "uid": pydicom.dcmread(files[0]).SeriesInstanceUID}
    case = {"case": "scan", "patient": "P1", "image": "data/scan.nii.gz", "dicom_series": series}
    content = {"dataset": "toy", "modality": "CT", "labels": {"tumour": 1, "left kidney": 2}, "cases": [case]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    (tmp_path / "volumes.csv").write_text(TABLE)
    return tmp_path


def export(run: Path, *options: str) -> Path:
    words = ["--masks", str(run / "masks"), "--datalist", str(run / "list.json"), "--format", "rtstruct"]
    main([*words, "--output", str(run / "dicom"), "--algorithm", "p2sam", *options])
    return run / "dicom" / "scan_measures.dcm"


def test_the_measures_stand_in_the_patients_study(run, capsys):
    report = export(run, "--measures", str(run / "volumes.csv"))
    assert read_sr(report) == {"tumour": Measured(0.768, 12.8, 8.2)}
    assert "measures of tumour" in capsys.readouterr().out
    written, image = pydicom.dcmread(report), pydicom.dcmread(next((run / "ct").iterdir()))
    for keyword in ("StudyInstanceUID", "PatientID", "StudyDate"):
        assert written[keyword].value == image[keyword].value
    assert written.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (written.VerificationFlag, written.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


def test_it_names_the_slices_that_hold_the_structure(run):
    from highdicom.sr import srread

    (group,) = srread(export(run, "--measures", str(run / "volumes.csv"))).content.get_image_measurement_groups()
    files = sorted((run / "ct").iterdir())
    held = {pydicom.dcmread(files[k]).SOPInstanceUID for k in (1, 2)}
    assert {image.referenced_sop_instance_uid for image in group.source_images} == held


def test_the_same_measures_give_the_same_bytes(run):
    first = export(run, "--measures", str(run / "volumes.csv")).read_bytes()
    assert export(run, "--measures", str(run / "volumes.csv")).read_bytes() == first


@pytest.mark.slow
def test_a_structure_has_the_same_tracking_uid_at_all_visits(run):
    from highdicom.sr import srread

    def uid(path: Path) -> str:
        return srread(path).content.get_image_measurement_groups()[0].tracking_uid

    first = uid(export(run, "--measures", str(run / "volumes.csv")))
    (run / "volumes.csv").write_text(TABLE.replace("0.768", "0.5"))
    assert uid(export(run, "--measures", str(run / "volumes.csv"))) == first


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "there is no such table"), ("case,label\nscan,tumour\n", "has no column")]
)
def test_a_table_that_is_none_is_refused(run, content, sentence):
    table = run / "other.csv"
    if content is not None:
        table.write_text(content)
    with pytest.raises(UserError, match=sentence):
        export(run, "--measures", str(table))
    assert not (run / "dicom").exists()


def test_values_that_are_too_long_are_kept_without_a_word(run, recwarn):
    for path in (run / "ct").iterdir():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            dataset.StudyID = "longer than 16 characters"
            dataset.save_as(path)
    export(run)
    assert not [str(one.message) for one in recwarn if "value length" in str(one.message)]
