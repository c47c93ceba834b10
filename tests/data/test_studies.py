"""Which annotated study serves the one that a request to MONAI Label asks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.studies import DATALIST, DATASTORE, Studies, result_options, served_folder, structure_values
from monai_ext.errors import UserError

LABELS = {"disc": 1, "odd ring": 3}
SHAPE = (6, 5, 2)


def write_volume(path: Path, *values: int) -> Path:
    """One voxel of each value, 0 elsewhere."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels.flat[: len(values)] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Studies of patient a (visit 0 annotated by the list) and of patient b (not annotated)."""
    for name in ("a0", "a1", "a2", "b0", "b1"):
        write_volume(tmp_path / f"{name}.nii.gz", 1)
    write_volume(tmp_path / "lists" / "a0_label.nii.gz", 1, 3)
    list_cases(tmp_path, label={"a0": "lists/a0_label.nii.gz"})
    return tmp_path


def list_cases(folder: Path, label: dict[str, str], labels: dict[str, int] = LABELS, **further) -> None:
    names = ("a0", "a1", "a2", "b0", "b1")
    cases = [{"case": n, "patient": n[0], "visit": int(n[1]), "image": f"{n}.nii.gz"} for n in names]
    cases = [{**case, **({"label": label[case["case"]]} if case["case"] in label else {})} for case in cases]
    content = {"dataset": "small", "modality": "MR", "labels": labels, "cases": cases, **further}
    (folder / DATALIST).write_text(json.dumps(content))


def save_label(folder: Path, study: str, *values: int, tag: str = "final", info: dict | None = None) -> Path:
    """What MONAI Label leaves when a viewer submits a label."""
    path = folder / DATASTORE
    store = json.loads(path.read_text()) if path.is_file() else {"objects": {}}
    known = store["objects"].setdefault(study, {"image": {"ext": ".nii.gz", "info": {}}, "labels": {}})
    known["labels"][tag] = {"ext": ".nii.gz", "info": info or {}}
    path.write_text(json.dumps(store))
    return write_volume(folder / "labels" / tag / f"{study}.nii.gz", *values)


def ask(folder: Path, study: str, *, reference=None, **options) -> dict:
    found = Studies(folder, **options)({"image_path": str(folder / f"{study}.nii.gz"), "reference": reference})
    assert found is not None
    return found


# --------------------------------------------------------------------------------------------------- by patient


def test_the_earliest_annotated_visit_of_the_data_list_serves(folder):
    for study in ("a1", "a2"):
        found = ask(folder, study)
        assert found == {
            "reference": ["a0"],
            "reference_image": [str(folder / "a0.nii.gz")],
            "reference_label": [str(folder / "lists" / "a0_label.nii.gz")],
            "reference_choice": "pooled",
            "labels": LABELS,
            "modality": "MR",
            "reference_modality": ["MR"],
        }


def test_a_submitted_label_goes_before_the_lists_own(folder):
    saved = save_label(folder, "a0", 3)
    found = ask(folder, "a1")
    assert found["reference_label"] == [str(saved)]
    assert found["labels"] == {"odd ring": 3}  # the corrected label holds no disc


def test_a_submitted_label_serves_a_patient_without_one_in_the_list(folder):
    saved = save_label(folder, "b0", 1, 3)
    found = ask(folder, "b1")
    assert (found["reference"], found["reference_label"]) == (["b0"], [str(saved)])


def test_a_draft_is_no_reference(folder):
    save_label(folder, "b0", 1, 3, tag="original")
    with pytest.raises(UserError, match="patient 'b' has no annotated study"):
        ask(folder, "b1")


def test_a_study_is_found_through_a_link(folder, tmp_path_factory):
    """Studies are links to the list's images."""
    studies = tmp_path_factory.mktemp("studies")
    content = json.loads((folder / DATALIST).read_text())
    for case in content["cases"]:
        case["image"] = str(folder / case["image"])
        case |= {"label": str(folder / case["label"])} if "label" in case else {}
        case["case"] = f"study-{case['case']}"
        (studies / f"{case['case']}.nii.gz").symlink_to(case["image"])
    (studies / DATALIST).write_text(json.dumps(content))
    assert ask(studies, "study-a1")["reference"] == ["study-a0"]
    with pytest.raises(UserError, match="study study-a0 "):  # its name, not its file's
        ask(studies, "study-a0")


def test_the_label_of_the_study_itself_is_never_opened(folder, monkeypatch):
    list_cases(folder, label={"a0": "lists/a0_label.nii.gz", "a1": "lists/a1_label.nii.gz"})
    shutil.copyfile(folder / "lists" / "a0_label.nii.gz", folder / "lists" / "a1_label.nii.gz")
    save_label(folder, "a1", 1)
    opened = []
    monkeypatch.setattr(
        "monai_ext.data.studies.read_label", lambda path: opened.append(Path(path).name) or np.array([0, 1, 3])
    )
    found = ask(folder, "a1")
    assert opened == ["a0_label.nii.gz"]
    assert found["reference"] == ["a0"]


def test_all_earlier_visits_may_serve(folder):
    saved = save_label(folder, "a1", 3)
    found = ask(folder, "a2", reference_visit="all")
    assert (found["reference"], found["reference_choice"]) == (["a0", "a1"], "pooled")
    assert found["reference_label"][1] == str(saved)
    assert ask(folder, "a2", reference_visit="nearest")["reference_choice"] == "nearest"


def test_only_the_chosen_structures_are_served(folder):
    assert ask(folder, "a1", names=["odd ring"])["labels"] == {"odd ring": 3}
    with pytest.raises(UserError, match=r"a0_label\.nii\.gz holds no structure of liver"):
        ask(folder, "a1", names=["liver"])


def test_the_value_to_be_ignored_needs_no_name(folder):
    write_volume(folder / "lists" / "a0_label.nii.gz", 1, 3, 255)
    with pytest.raises(UserError, match=r"a0_label\.nii\.gz holds 255, which is no label of .*datalist\.json"):
        ask(folder, "a1")
    list_cases(folder, label={"a0": "lists/a0_label.nii.gz"}, ignore=255)
    assert ask(folder, "a1")["labels"] == LABELS


def test_an_empty_label_is_no_reference(folder):
    save_label(folder, "a0")
    with pytest.raises(UserError, match=r"labels/final/a0\.nii\.gz holds no structure: annotate it"):
        ask(folder, "a1")


@pytest.mark.parametrize(("study", "annotated"), [("a0", "a0"), ("b0", "b0"), ("b0", "b1")])
@pytest.mark.parametrize("visits", [None, "all"])
def test_neither_its_own_label_nor_a_later_one_is_a_reference(folder, study, annotated, visits):
    save_label(folder, annotated, 1)
    with pytest.raises(UserError, match=rf"study {study} \(visit 0\) has no annotated visit before it"):
        ask(folder, study, reference_visit=visits)


def test_without_a_data_list_the_sentence_says_what_to_do(folder):
    (folder / DATALIST).unlink()
    with pytest.raises(UserError, match=r'study a1 has no reference: put a data list .*, "reference": {"study": NAME'):
        ask(folder, "a1")


def test_a_study_that_the_list_does_not_know(folder):
    write_volume(folder / "c0.nii.gz", 1)
    with pytest.raises(UserError, match=r"study c0 is no image of .*datalist\.json: add it there"):
        ask(folder, "c0")


def test_a_patient_of_one_study_needs_a_reference_by_name(folder):
    content = json.loads((folder / DATALIST).read_text())
    alone = {"case": "b1", "patient": "b", "image": "b1.nii.gz", "label": "lists/a0_label.nii.gz"}
    (folder / DATALIST).write_text(json.dumps({**content, "cases": [alone]}))
    with pytest.raises(UserError, match=r"study b1: no other study of patient 'b' is annotated: name an annotated"):
        ask(folder, "b1")


# ------------------------------------------------------------------------------------------------------ by name


def test_the_list_tells_the_modalities_of_what_is_named(folder):
    save_label(folder, "a0", 1)
    assert ask(folder, "b1", reference="a0")["modality"] == "MR"
    content = json.loads((folder / DATALIST).read_text())
    content["cases"][0]["modality"] = "CT"  # of a0
    (folder / DATALIST).write_text(json.dumps(content))
    for study, named in (("b1", "a0"), ("a1", None)):
        found = ask(folder, study, reference=named)
        assert (study, found["modality"], found["reference_modality"]) == (study, "MR", ["CT"])
    with pytest.raises(UserError, match="study b1 is MR, but its reference a0 is CT"):
        ask(folder, "b1", reference="a0", allow_modality=False)
    (folder / DATALIST).unlink()
    assert ask(folder, "b1", reference="a0", allow_modality=False)["reference_modality"] == [""]


@pytest.mark.parametrize("reference", ["b0", {"study": "b0"}, {"study": "b0", "tag": "final"}, ["b0"]])
def test_a_named_study_serves_any_patient(folder, reference):
    saved = save_label(folder, "b0", 2)
    found = ask(folder, "a1", reference=reference)
    assert (found["reference"], found["reference_label"]) == (["b0"], [str(saved)])
    assert found["reference_image"] == [str(folder / "b0.nii.gz")]
    assert found["labels"] == {"label_2": 2}


def test_a_named_study_needs_no_data_list(folder):
    (folder / DATALIST).unlink()
    save_label(folder, "b0", 2, tag="draft")
    assert ask(folder, "a1", reference={"study": "b0", "tag": "draft"})["labels"] == {"label_2": 2}


@pytest.mark.parametrize(
    "info",
    [
        {"label_info": [{"idx": 2, "name": "spleen"}, {"idx": 9, "name": "not there"}]},
        {"params": {"label_info": [{"idx": 2, "name": "spleen"}]}},
    ],
)
def test_names_are_those_that_the_viewer_saved(folder, info):
    save_label(folder, "b0", 2, 4, info=info)
    assert ask(folder, "a1", reference="b0")["labels"] == {"spleen": 2, "label_4": 4}


def test_several_named_studies_serve_together(folder):
    save_label(folder, "b0", 2, info={"label_info": [{"idx": 2, "name": "spleen"}]})
    save_label(folder, "b1", 4)
    found = ask(folder, "a1", reference=["b0", {"study": "b1"}])
    assert (found["reference"], found["labels"]) == (["b0", "b1"], {"spleen": 2, "label_4": 4})


@pytest.mark.parametrize(
    ("value", "told", "sentence"),
    [
        (4, {"idx": 4, "name": "spleen"}, r"reference 'b1' has 'spleen' as 4, .* before it 'spleen' is 2: give"),
        (2, {"idx": 2, "name": "liver"}, r"reference 'b1' has 'liver' as 2, .* before it 2 is 'spleen': give"),
        (2, {}, r"reference 'b1' has 'label_2' as 2, .* before it 2 is 'spleen': give"),
    ],
)
def test_named_studies_whose_segments_are_numbered_otherwise_do_not_serve_together(folder, value, told, sentence):
    save_label(folder, "b0", 2, info={"label_info": [{"idx": 2, "name": "spleen"}]})
    save_label(folder, "b1", value, info={"label_info": [told]})
    with pytest.raises(UserError, match=sentence):
        ask(folder, "a1", reference=["b0", "b1"])


@pytest.mark.parametrize("name", ["odd ring", "something else"])
def test_a_submitted_label_whose_segments_are_numbered_otherwise_than_the_list_does_not_serve(folder, name):
    save_label(folder, "a0", 1, info={"params": {"label_info": [{"idx": 1, "name": name}]}})
    with pytest.raises(UserError, match=f"the viewer saved '{name}' as 1, which is 'disc' in the data list: name and"):
        ask(folder, "a1")


def test_a_submitted_label_whose_segments_are_numbered_as_in_the_list_serves(folder):
    save_label(folder, "a0", 3, info={"label_info": [{"idx": 3, "name": "odd ring"}, {"idx": 1, "name": "none drawn"}]})
    assert ask(folder, "a1")["labels"] == {"odd ring": 3}


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("nobody", r"reference 'nobody' is no study of .*: these are a1, b0\."),
        ({"study": "b0", "tag": "draft"}, r"study 'b0' has no label tagged 'draft' \(it has final\)"),
        ({"tag": "final"}, "names no study"),
        (7, "reference 7 names no study"),
        ("a1", "study a1 cannot be its own reference"),
    ],
)
def test_a_reference_that_is_none(folder, reference, sentence):
    save_label(folder, "b0", 2)
    save_label(folder, "a1", 2)
    with pytest.raises(UserError, match=sentence):
        ask(folder, "a1", reference=reference)


# --------------------------------------------------------------------------------------------------- values in a label


@pytest.mark.parametrize(
    ("told", "values"),
    [
        ([], LABELS),
        ([{"name": "odd ring", "idx": 1}], {"odd ring": 1}),
        ([{"name": "disc", "idx": 2}, {"name": "kidney", "idx": 1}], {"disc": 2}),
        ([{"name": "kidney", "idx": 1}], {}),
    ],
)
def test_a_viewers_segments_are_ours_by_name_and_never_by_number_alone(told, values):
    assert structure_values({"label_info": told}, LABELS) == values


# --------------------------------------------------------------------------------------------------- no request


def test_elsewhere_nothing_is_served(folder, monkeypatch):
    monkeypatch.delenv("MONAI_LABEL_STUDIES", raising=False)
    assert served_folder() is None
    assert Studies()({"image_path": "a1.nii.gz"}) is None
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(folder))
    assert served_folder() == folder
    assert Studies()({"image": "a1.nii.gz"}) is None


@pytest.mark.parametrize(
    ("image", "values", "options"),
    [
        ("a.nii.gz", (1, 255), {"result_dtype": "uint8"}),
        ("a.nii.gz", (1, 256), {"result_dtype": "uint16"}),
        ("a.png", (255,), {"result_dtype": "uint8", "result_extension": ".png"}),
    ],
)
def test_a_mask_is_written_in_the_smallest_type_and_without_loss(image, values, options):
    assert result_options(image, {str(value): value for value in values}) == options
