from __future__ import annotations

import json
from functools import partial

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.phantoms import PATIENT_LABELS, write_phantom_cells, write_phantom_cohort, write_phantom_patient


@pytest.mark.slow
def test_written_patient_is_the_pure_one(tmp_path, visits):
    path = write_phantom_patient(tmp_path / "new" / "folder", seed=3)
    content = json.loads(path.read_text())
    assert content["labels"] == PATIENT_LABELS
    assert content["modality"] == "MR"
    assert [case["visit"] for case in content["cases"]] == [0, 1, 2]
    assert len({case["case"] for case in content["cases"]}) == 3
    assert len({case["patient"] for case in content["cases"]}) == 1
    for case, visit in zip(content["cases"], visits, strict=True):
        image, label = (nib.load(path.parent / case[key]) for key in ("image", "label"))
        assert image.get_data_dtype() == np.int16
        np.testing.assert_allclose(image.get_fdata(), visit.image, atol=0.5)
        np.testing.assert_array_equal(np.asarray(label.dataobj), visit.label)
        np.testing.assert_allclose(image.affine, visit.affine, atol=1e-4)
        np.testing.assert_array_equal(image.affine, label.affine)


@pytest.mark.slow
def test_writing_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    path = write_phantom_patient(tmp_path, seed=1)
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert write_phantom_patient(tmp_path, seed=1) == path
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    assert len(first) == 7


@pytest.mark.slow
def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr("monai_ext.data.phantoms.writing.gzip.compress", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        write_phantom_patient(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cohort_is_one_list_of_several_phantoms(tmp_path):
    path = write_phantom_cohort(tmp_path, [4, 0], partial(write_phantom_cells, n=2))
    alone = json.loads(write_phantom_cells(tmp_path / "alone", 4, 2).read_text())
    content = json.loads(path.read_text())
    assert path == tmp_path / "phantom_cells.json"
    assert {key: content[key] for key in ("dataset", "labels", "modality")} == {
        key: alone[key] for key in ("dataset", "labels", "modality")
    }
    assert [(case["patient"], case["case"], case["visit"]) for case in content["cases"]] == [
        ("seed4", "seed4_phantom_cell001", 1),
        ("seed4", "seed4_phantom_cell002", 2),
        ("seed0", "seed0_phantom_cell001", 1),
        ("seed0", "seed0_phantom_cell002", 2),
    ]
    first = content["cases"][0]
    for kind in ("image", "label"):
        assert (tmp_path / first[kind]).read_bytes() == (tmp_path / "alone" / alone["cases"][0][kind]).read_bytes()


def test_a_cohort_needs_a_seed(tmp_path):
    with pytest.raises(ValueError, match="at least one seed"):
        write_phantom_cohort(tmp_path, [])
