from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_ext import session
from monai_ext.data.manifest import load_datalist
from monai_ext.data.pairs import pair_with_reference
from monai_ext.errors import UserError
from monai_ext.session import cases


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (None, {"RV": 1, "MYO": 2, "LV": 3}),
        ("LV", {"LV": 3}),
        (["LV", "RV"], {"LV": 3, "RV": 1}),
        (("MYO",), {"MYO": 2}),
    ],
)
def test_labels_asked_for(datalist, names, labels):
    assert list(session.select_labels(datalist, names).items()) == list(labels.items())


def test_unknown_label_names_those_there_are(datalist):
    with pytest.raises(UserError, match="label 'LA' is not in the data list: it has RV, MYO, LV"):
        session.select_labels(datalist, ["LV", "LA"])


@pytest.mark.parametrize("names", [5, [5], [["LV"]], True])
def test_labels_that_are_no_names_are_refused(datalist, names):
    with pytest.raises(UserError, match="is not in the data list: it has RV, MYO, LV"):
        session.select_labels(datalist, names)


def test_a_data_list_that_is_no_path_is_refused(tmp_path):
    with pytest.raises(UserError, match="--datalist is 5: give the path of one JSON file"):
        session.find_datalist(5, tmp_path)


def test_no_label_at_all_is_refused(datalist):
    with pytest.raises(UserError, match="--labels is empty"):
        session.select_labels(datalist, [])


@pytest.mark.slow
def test_without_a_data_list_a_phantom_is_written(tmp_path):
    path = session.find_datalist(None, tmp_path / "out")
    assert path == tmp_path / "out" / "phantom" / "phantom.json"
    assert len(json.loads(path.read_text())["cases"]) == 3


@pytest.mark.slow
def test_phantom_patients_serve_each_other(tmp_path):
    path = session.find_datalist(None, tmp_path, "patients")
    pairs = pair_with_reference(load_datalist(path))
    served = {pair["case"]: Path(pair["reference_image"][0]).name for pair in pairs}
    names = [f"phantom{n}" for n in range(cases.PHANTOM_PATIENTS)]
    assert served == {name: f"{other}_image.nii.gz" for name, other in zip(names, names[1:] + names[:1], strict=True)}
    assert len({case.fold for case in load_datalist(path).cases}) == cases.PHANTOM_PATIENTS


def test_the_phantom_is_refused_to_weights_that_know_other_structures(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"segment RV, lesion, which the phantom patient.*give --datalist"):
        session.refuse_phantom(None, ["RV", "lesion"])
    session.refuse_phantom("list.json", ["RV"])
    session.refuse_phantom(None, ["lesion"])
    session.refuse_phantom(None, "lesion")
    session.refuse_phantom(None, None)
    monkeypatch.setattr(cases, "served_folder", lambda: tmp_path)
    session.refuse_phantom(None, ["RV"])


@pytest.mark.slow
def test_classes_are_counted_without_a_data_list_where_the_labels_are_known(tmp_path):
    assert session.count_classes(["RV", "MYO", "LV"], "missing.json", None, tmp_path / "out") == 4
    assert session.count_classes("RV", None, None, tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
    assert session.count_classes(None, None, None, tmp_path / "out") == 3
    with pytest.raises(UserError, match="--labels is empty"):
        session.count_classes([], None, None, tmp_path / "out")


def test_a_data_list_is_taken_as_given(tmp_path):
    assert session.find_datalist(str(tmp_path / "list.json"), tmp_path / "out") == tmp_path / "list.json"
    assert not (tmp_path / "out").exists()


def test_a_shard_has_a_folder_of_its_own(tmp_path):
    assert session.run_folder(tmp_path) == tmp_path
    assert session.run_folder(tmp_path, "1/4") == tmp_path / "shard-1-of-4"
