"""Tests of monai_ext.data.supports."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_ext.data.checks import grid_difference
from monai_ext.data.images import read_geometry, read_label
from monai_ext.data.manifest import Case, DataList
from monai_ext.data.pairs import pair_with_reference, with_labels
from monai_ext.data.supports import Support, pair_with_support, parse_support
from monai_ext.errors import UserError

AFFINE = np.diag([-2.0, -2.0, 6.0, 1.0])


@pytest.fixture
def datalist(tmp_path) -> DataList:
    """Three patients; the liver (1) is on slices 1 to 3, the spleen (4) on slice 2 alone."""
    cases = []
    for name in ("a", "b", "c"):
        label = np.zeros((8, 6, 5), np.uint8)
        label[1:4, 1:4, 1:4] = 1
        label[5:7, 2:4, 2] = 4
        for what, array in (("image", label * 20.0), ("label", label)):
            nib.save(nib.Nifti1Image(array.astype(np.float32), AFFINE), tmp_path / f"{name}_{what}.nii.gz")
        files = {what: str(tmp_path / f"{name}_{what}.nii.gz") for what in ("image", "label")}
        cases.append(Case(case=f"{name}0", patient=name, site=3, scribble=files["label"], **files))
    return DataList(dataset="Toy", modality="MR", labels={"liver": 1, "spleen": 4}, cases=cases)


def mask_of(pairs) -> np.ndarray:
    (path,) = pairs[0]["reference_label"]
    return read_label(path)


@pytest.mark.parametrize(
    ("text", "support"),
    [
        ("case05", Support("case05")),
        ("case05:14", Support("case05", (14,))),
        ("case05:9,14,19", Support("case05", (9, 14, 19))),
    ],
)
def test_names_of_supports(text, support) -> None:
    assert parse_support(text) == support
    assert support.name == text


@pytest.mark.parametrize("text", ["case05:", ":3", "case05:x", "case05:-1"])
def test_what_is_no_support(text) -> None:
    with pytest.raises(UserError, match="is none: name a case, or a case and slices"):
        parse_support(text)


def test_pairs_are_those_of_a_reference(datalist, tmp_path) -> None:
    pairs = pair_with_support(datalist, "a0", "liver", tmp_path / "supports")
    assert [pair["case"] for pair in pairs] == ["b0", "c0"]
    for number, case in enumerate(datalist.cases):
        case.visit, case.patient = number, "one"
    usual = pair_with_reference(datalist)
    assert [pair.keys() for pair in pairs] == [{**pair, "reference_patient": ""}.keys() for pair in usual]
    for pair in pairs:
        assert pair["reference_patient"] == "a"
        assert pair["reference"] == ["a0"]
        assert pair["reference_image"] == [datalist.cases[0].image]
        assert "label" not in pair
        assert "scribble" not in pair
        assert pair["site"] == 3
    assert with_labels(pairs, datalist)[0]["label"] == datalist.cases[1].label


def test_the_mask_holds_the_organ_alone(datalist, tmp_path) -> None:
    whole = read_label(datalist.cases[0].label)
    pairs = pair_with_support(datalist, "a0", "spleen", tmp_path / "supports")
    np.testing.assert_array_equal(mask_of(pairs), np.where(whole == 4, 4, 0))
    np.testing.assert_array_equal(read_geometry(pairs[0]["reference_label"][0]).affine, AFFINE)


def test_the_mask_of_a_support_in_micrometres_lies_on_its_image(datalist, tmp_path) -> None:
    for path in (datalist.cases[0].image, datalist.cases[0].label):
        stored = nib.load(path)
        volume = nib.Nifti1Image(np.asarray(stored.dataobj), stored.affine)
        volume.header.set_xyzt_units("micron")
        nib.save(volume, path)
    (mask,) = pair_with_support(datalist, "a0", "liver", tmp_path / "supports")[0]["reference_label"]
    assert grid_difference(read_geometry(datalist.cases[0].image), read_geometry(mask)) is None


@pytest.mark.parametrize("support", ["a0", "a0:2"])
@pytest.mark.parametrize("change", ["shape", "origin"])
def test_a_mask_that_does_not_lie_on_its_image_is_refused(datalist, tmp_path, support, change) -> None:
    stored = nib.load(datalist.cases[0].label)
    array, affine = np.asarray(stored.dataobj), stored.affine.copy()
    if change == "shape":
        array = array[..., :-1]
    else:
        affine[0, 3] += 10
    nib.save(nib.Nifti1Image(array, affine), datalist.cases[0].label)
    with pytest.raises(UserError, match=f"a_label.nii.gz: label grid differs from image grid: {change} "):
        pair_with_support(datalist, support, "liver", tmp_path / "supports")
    assert not list(tmp_path.glob("supports/*"))


def test_named_slices_alone(datalist, tmp_path) -> None:
    whole = read_label(datalist.cases[0].label)
    mask = mask_of(pair_with_support(datalist, "a0:1,3", "liver", tmp_path / "supports"))
    assert np.flatnonzero(mask.any((0, 1))).tolist() == [1, 3]
    np.testing.assert_array_equal(mask[..., 3], np.where(whole[..., 3] == 1, 1, 0))


def test_supports_of_one_case_have_files_of_their_own(datalist, tmp_path) -> None:
    one, other, again = (
        pair_with_support(datalist, text, "liver", tmp_path)[0]["reference_label"][0]
        for text in ("a0:1", "a0:3", "a0:1")
    )
    assert one == again != other


def test_the_value_is_that_of_the_queries(datalist, tmp_path) -> None:
    others = datalist.model_copy(update={"dataset": "Other", "labels": {"liver": 7}, "cases": datalist.cases[1:]})
    pairs = pair_with_support(others, "a0", "liver", tmp_path, supports=datalist)
    assert set(np.unique(mask_of(pairs))) == {0, 7}
    assert [pair["dataset"] for pair in pairs] == ["Other", "Other"]


def test_pictures(tmp_path) -> None:
    cases = []
    for name in "ab":
        picture = np.zeros((5, 7), np.uint8)
        picture[1:3, 2:6] = 255
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        cases.append(Case(case=name, image=str(tmp_path / f"{name}.png"), label=str(tmp_path / f"{name}.png")))
    datalist = DataList(dataset="Pictures", modality="US", labels={"lesion": 255}, cases=cases)
    mask = mask_of(pair_with_support(datalist, "a", "lesion", tmp_path / "supports"))
    np.testing.assert_array_equal(mask, read_label(cases[0].label))
    other = datalist.model_copy(update={"labels": {"lesion": 300}, "cases": cases[1:]})
    assert set(np.unique(mask_of(pair_with_support(other, "a", "lesion", tmp_path, supports=datalist)))) == {0, 300}
    with pytest.raises(UserError, match=r"a\.png is a picture and has no slices"):
        pair_with_support(datalist, "a:0", "lesion", tmp_path)


@pytest.mark.parametrize(
    ("support", "organ", "options", "sentence"),
    [
        ("z0", "liver", {}, "support z0: Toy has no such case; it has a0, b0, c0"),
        ("a0", "heart", {}, "class 'heart' is unknown: Toy has liver, spleen"),
        ("a0:3", "spleen", {}, "support a0:3: slice 3 of .*a_label.nii.gz shows no spleen; slices 2 to 2 do"),
        ("a0", "liver", {"queries": ["x"]}, "query 'x' is in no case of Toy"),
        ("a0", "liver", {"queries": ["a0"]}, "Toy has no case of another patient to be segmented"),
        ("a0", "liver", {"trained": ["a"]}, "case 'a0' is of patient 'a', who is in the training"),
        ("a0", "liver", {"trained": ["c"]}, "case 'c0' is of patient 'c', who is in the training"),
    ],
)
def test_mistakes(datalist, tmp_path, support, organ, options, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        pair_with_support(datalist, support, organ, tmp_path / "supports", **options)
    assert not list(Path(tmp_path).glob("supports/*"))


def test_a_support_without_the_organ(datalist, tmp_path) -> None:
    empty = datalist.model_copy(update={"labels": {**datalist.labels, "kidney": 2}})
    with pytest.raises(UserError, match=r"support a0: .*a_label.nii.gz shows no kidney \(value 2; it holds 0, 1, 4\)"):
        pair_with_support(empty, "a0", "kidney", tmp_path)
    datalist.cases[0].label = None
    with pytest.raises(UserError, match="support a0: the case has no 'label'"):
        pair_with_support(datalist, "a0", "liver", tmp_path)


def test_another_modality_is_refused_unless_told(datalist, tmp_path) -> None:
    datalist.cases[2].modality = "CT"
    with pytest.raises(UserError, match="case 'c0' is CT, but its support 'a0' is MR"):
        pair_with_support(datalist, "a0", "liver", tmp_path)
    assert len(pair_with_support(datalist, "a0", "liver", tmp_path, allow_modality=True)) == 2


def test_patients_of_the_training_pass_when_told(datalist, tmp_path) -> None:
    assert len(pair_with_support(datalist, "a0", "liver", tmp_path, trained=["a", "c"], allow_trained=True)) == 2
