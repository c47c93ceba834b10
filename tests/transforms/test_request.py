from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_ext.errors import UserError
from monai_ext.transforms.request import REQUEST, Requestd

FOUND = {
    "reference": ["visit0"],
    "reference_image": ["a.nii.gz"],
    "reference_label": ["b.nii.gz"],
    "reference_choice": "nearest",
    "labels": {"disc": 1},
    "modality": "CT",
}


def answer(found, **params):
    item = {"image": MetaTensor(torch.zeros(1, 4, 4, 4)), "image_path": "x.nii.gz", **params}
    return Requestd("image", lambda item: found, lambda path, labels: {"result_dtype": "uint8"})(item)


def test_an_item_that_is_no_request_passes_as_it_is():
    done = answer(None, foreground=[[1, 1, 1]])
    assert REQUEST not in done["image"].meta
    assert set(done) == {"image", "image_path", "foreground"}


def test_reference_and_clicks_are_in_the_meta():
    done = answer(FOUND, foreground=[[1, 2, 3], [0, 0, 1]], background="[[3, 3, 3]]", structure="disc")
    request = done["image"].meta[REQUEST]
    assert {key: request[key] for key in ("reference_image", "reference_label", "reference_choice", "labels")} == {
        key: FOUND[key] for key in ("reference_image", "reference_label", "reference_choice", "labels")
    }
    assert [(click["index"], click["positive"], click["structure"]) for click in request["clicks"]] == [
        ([1, 2, 3], True, "disc"),
        ([0, 0, 1], True, "disc"),
        ([3, 3, 3], False, "disc"),
    ]
    assert (done["modality"], done["result_dtype"]) == ("CT", "uint8")
    assert done["result"] == {"labels": {"disc": 1}, "reference": ["visit0"]}


def test_references_have_a_modality_of_their_own():
    found = {**FOUND, "reference_modality": ["MR"]}
    assert answer(found)["image"].meta[REQUEST]["reference_modality"] == ["MR"]
    assert answer(found, modality="PET")["image"].meta[REQUEST]["reference_modality"] is None


def test_what_the_request_says_itself_stays():
    done = answer(FOUND, modality="MR", result_dtype="uint16", foreground=[1, 2, 3])
    assert (done["modality"], done["result_dtype"]) == ("MR", "uint16")
    assert [click["index"] for click in done["image"].meta[REQUEST]["clicks"]] == [[1, 2, 3]]


@pytest.mark.parametrize("clicks", ["here", [[1]], [[1, 2, 3, 4]], [["a", 1, 1]], 3])
def test_clicks_that_are_none(clicks):
    with pytest.raises(UserError, match=r"foreground is .* voxel indices"):
        answer(FOUND, foreground=clicks)


def test_an_unknown_structure():
    with pytest.raises(UserError, match="'ring' is not on the reference: it has disc"):
        answer(FOUND, structure="ring")
