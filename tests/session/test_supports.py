"""Tests of monai_ext.session.supports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.images import read_label
from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.errors import UserError
from monai_ext.session import supports

AFFINE = np.diag([-2.0, -2.0, 6.0, 1.0])
LABELS = {"liver": 1, "spleen": 4}


@pytest.fixture
def datalist(tmp_path) -> DataList:
    """Patients a, b and c, in a fold each; the liver is on slices 1 to 3, the spleen on slice 2."""
    cases = []
    for fold, name in enumerate("abc"):
        label = np.zeros((8, 6, 5), np.uint8)
        label[1:4, 1:4, 1:4], label[5:7, 2:4, 2] = 1, 4
        for what, array in (("image", label * 20.0), ("label", label)):
            nib.save(nib.Nifti1Image(array.astype(np.float32), AFFINE), tmp_path / f"{name}_{what}.nii.gz")
        case = {"case": f"{name}0", "patient": name, "fold": fold, "image": f"{name}_image.nii.gz"}
        cases.append({**case, "label": f"{name}_label.nii.gz"})
    path = tmp_path / "toy.json"
    path.write_text(json.dumps({"dataset": "Toy", "modality": "MR", "labels": LABELS, "cases": cases}))
    return load_datalist(path)


@pytest.fixture
def weights(tmp_path) -> Path:
    """A file with the record of a training on the spleens of patient c."""
    path = tmp_path / "weights.pt"
    path.touch()
    seen = TrainingData(dataset="toy", patients=["c"], labels="dense", licence="none")
    fields = {"name": "w", "variant": "v", "command": "none", "licence": "none", "sha256": ""}
    write_record(path, WeightRecord(datasets=[seen], trained_as={"classes": ["Spleen"]}, **fields))
    return path


def serve(datalist: DataList, tmp_path: Path, structure: str = "liver", **options: Any) -> list[dict[str, Any]]:
    given = {"support": "a0:2", "supports": datalist, **options}
    return supports.serve_cases(datalist, {structure: LABELS[structure]}, tmp_path / "run", **given)


def test_the_support_may_be_of_another_fold_or_list(datalist, tmp_path) -> None:
    path = tmp_path / "toy.json"
    tested = load_datalist(path, fold=1)
    for support_list in (None, path):
        whole = supports.load_supports(support_list, path)
        assert [case.case for case in whole.cases] == ["a0", "b0", "c0"]
        assert [pair["case"] for pair in serve(tested, tmp_path, supports=whole)] == ["b0"]


def test_one_support_serves_the_queries(datalist, tmp_path) -> None:
    pairs = serve(datalist, tmp_path)
    assert [pair["case"] for pair in pairs] == ["b0", "c0"]
    assert all("label" not in pair for pair in pairs)
    (mask,) = {path for pair in pairs for path in pair["reference_label"]}
    assert Path(mask).parent == tmp_path / "run" / "supports"
    assert [pair["case"] for pair in serve(datalist, tmp_path, queries="c0")] == ["c0"]
    assert [pair["case"] for pair in serve(datalist, tmp_path, queries=["b0"])] == ["b0"]


def test_slices_are_numbered_along_the_axis_of_the_run(datalist, tmp_path) -> None:
    whole = read_label(datalist.cases[0].label) == 1
    for letter, axis in ((None, 2), ("S", 2), ("A", 1), ("R", 0)):
        (path,) = serve(datalist, tmp_path, slice_axis=letter)[0]["reference_label"]
        assert np.flatnonzero(read_label(path).any(axis=tuple({0, 1, 2} - {axis}))).tolist() == [2], letter
        np.testing.assert_array_equal(np.take(read_label(path), 2, axis), np.take(whole, 2, axis))
    with pytest.raises(UserError, match=r"slice 4 of .* shows no liver; slices 1 to 3 do"):
        serve(datalist, tmp_path, support="a0:4", slice_axis="R")


def test_known_patients_and_structures_are_refused_unless_told(datalist, tmp_path, weights) -> None:
    with pytest.raises(UserError, match="'c0' is of patient 'c', who is in the training"):
        serve(datalist, tmp_path, weights=weights)
    assert len(serve(datalist, tmp_path, weights=weights, allow_overlap=True)) == 2
    known = r"spleen is among the classes that .* learned from \(Spleen\).*set --allow_known true"
    with pytest.raises(UserError, match=known):
        serve(datalist, tmp_path, "spleen", weights=weights, queries="b0")
    assert len(serve(datalist, tmp_path, "spleen", weights=weights, queries="b0", allow_known=True)) == 1


def test_known_structures_are_refused_where_the_list_names_supports(datalist, tmp_path, weights) -> None:
    for case in datalist.cases:
        case.reference_image, case.reference_label = datalist.cases[0].image, datalist.cases[0].label
    with pytest.raises(UserError, match="spleen is among the classes"):
        serve(datalist, tmp_path, "spleen", weights=weights, support=None)
    assert len(serve(datalist, tmp_path, weights=weights, support=None, allow_overlap=True)) == 3


def test_trained_patients_are_refused_where_the_list_names_supports(datalist, tmp_path, weights) -> None:
    own = {"reference_image": [datalist.cases[0].image], "reference_label": [datalist.cases[0].label]}
    listed = datalist.model_copy(update={"cases": [case.model_copy(update=own) for case in datalist.cases]})
    with pytest.raises(UserError, match="'c0' is of patient 'c', who is in the training"):
        serve(listed, tmp_path, weights=weights, support=None)
    assert len(serve(listed, tmp_path, weights=weights, support=None, queries=["a0", "b0"])) == 2
    own = {"reference_image": [datalist.cases[2].image], "reference_label": [datalist.cases[2].label]}
    listed = datalist.model_copy(update={"cases": [datalist.cases[1].model_copy(update=own)]})
    with pytest.raises(UserError, match="'c0' is of patient 'c', who is in the training"):
        serve(listed, tmp_path, weights=weights, support=None, supports=datalist)
    served = serve(listed, tmp_path, weights=weights, support=None, supports=datalist, allow_overlap=True)
    assert len(served) == 1


def test_supports_that_the_list_names_tell_of_no_change_in_size(datalist, tmp_path) -> None:
    """They are a slice, or another patient's: `change_percent` of volumes.csv compares with neither."""
    own = {"reference_image": [datalist.cases[0].image], "reference_label": [datalist.cases[0].label]}
    listed = datalist.model_copy(update={"cases": [datalist.cases[1].model_copy(update=own)]})
    (pair,) = serve(listed, tmp_path, support=None)
    assert pair["reference_patient"] not in ("", pair["patient"])


def test_queries_are_looked_for_among_the_trained_patients_of_their_own_data_set(datalist, tmp_path, weights) -> None:
    elsewhere = datalist.model_copy(update={"dataset": "Elsewhere"})
    with pytest.raises(UserError, match="case 'c0' is of patient 'c', who is in the training"):
        serve(datalist, tmp_path, supports=elsewhere, weights=weights)
    pairs = supports.serve_cases(elsewhere, {"liver": 1}, tmp_path / "run", "a0:2", datalist, weights=weights)
    assert [pair["case"] for pair in pairs] == ["b0", "c0"]  # another data set's patient c
    with pytest.raises(UserError, match="case 'c0' is of patient 'c', who is in the training"):
        supports.serve_cases(elsewhere, {"liver": 1}, tmp_path / "run", "c0:2", datalist, weights=weights)


def test_weights_without_a_record_know_nothing(datalist, tmp_path) -> None:
    assert supports.trained_patients(None, datalist) == set()
    assert supports.trained_patients(tmp_path / "none.pt", datalist) == set()
    assert len(serve(datalist, tmp_path, "spleen", weights=tmp_path / "none.pt")) == 2


def test_other_modalities_are_refused_unless_told(datalist, tmp_path) -> None:
    datalist.cases[1].modality = "CT"
    with pytest.raises(UserError, match=r"case 'b0' is CT, but its support 'a0' is MR.*--allow_modality true"):
        serve(datalist, tmp_path)
    assert len(serve(datalist, tmp_path, allow_modality=True)) == 2


def test_modalities_are_compared_whatever_the_case_of_their_letters(datalist, tmp_path) -> None:
    datalist.cases[1].modality = "mr "
    assert len(serve(datalist, tmp_path)) == 2


def test_a_missing_list_of_supports_is_named(datalist, tmp_path) -> None:
    with pytest.raises(UserError, match="there is no such data list; check --support_list"):
        supports.load_supports(tmp_path / "none.json", tmp_path / "toy.json")


def test_the_values_that_a_support_holds_are_named(datalist, tmp_path) -> None:
    for support in ("a0", "a0:2"):
        with pytest.raises(UserError, match=r"shows no liver \(value 255; it holds 0, 1, 4\).*correct the value"):
            supports.serve_cases(
                datalist.model_copy(update={"labels": {"liver": 255}}),
                {"liver": 255},
                tmp_path / "run",
                support,
                datalist.model_copy(update={"labels": {"liver": 255}}),
            )


def test_mistakes(datalist, tmp_path) -> None:
    with pytest.raises(UserError, match="Toy: no support is named: give --support CASE:SLICE"):
        serve(datalist, tmp_path, support=None)
    with pytest.raises(UserError, match="a support serves one structure, and 2 are asked for"):
        supports.serve_cases(datalist, LABELS, tmp_path, "a0:2", datalist)


def test_queries_are_chosen_from_a_list_that_names_its_supports(datalist, tmp_path) -> None:
    first = datalist.cases[0]
    own = {"reference_image": [first.image], "reference_label": [first.label]}
    cases = [case.model_copy(update=own) for case in datalist.cases[1:]]
    listed = datalist.model_copy(update={"cases": cases})
    assert [p["case"] for p in serve(listed, tmp_path, support=None)] == ["b0", "c0"]
    assert [p["case"] for p in serve(listed, tmp_path, support=None, queries=["c0"])] == ["c0"]
    with pytest.raises(UserError, match="query 'd0' is in no case"):
        serve(listed, tmp_path, support=None, queries="d0")
