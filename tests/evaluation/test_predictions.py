"""Which file is of which case, and what becomes of masks on other grids."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_ext.data.images import Geometry, read_geometry
from monai_ext.errors import UserError
from monai_ext.evaluation.predictions import (
    OtherGridError,
    PredictionFiles,
    describe_grid,
    find_predictions,
    read_prediction,
    resample_onto,
)

OBLIQUE = np.array([[0, -2.4, 1.8, 7], [0.9, 0, 0, -3], [0, 1.8, 2.4, 11], [0, 0, 0, 1]])


def touch(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")


def write_volume(path, array, affine):
    nib.save(nib.Nifti1Image(array.astype(np.uint8), affine), path)
    return path


def geometry(shape, affine):
    affine = np.asarray(affine, dtype=float)
    return Geometry(shape, affine, tuple(nib.affines.voxel_sizes(affine)), False)


def test_masks_are_found_by_their_case(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii", "c d.PNG", "other.png", "metrics.csv", ".hidden.png")
    found, unexpected = find_predictions(tmp_path, ["a", "b", "c d", "e"], ["RV"])
    assert [found[case].whole for case in ("a", "b", "c d", "e")] == [
        tmp_path / "a.nii.gz",
        tmp_path / "b.nii",
        tmp_path / "c d.PNG",
        None,
    ]
    assert unexpected == ["other.png"]


def test_a_case_may_be_called_like_a_hidden_file(tmp_path):
    touch(tmp_path, ".a.nii.gz", "b.nii.gz", "._b.nii.gz")
    found, unexpected = find_predictions(tmp_path, [".a", "b"], ["RV"])
    assert (found[".a"].whole, unexpected) == (tmp_path / ".a.nii.gz", [])


def test_labels_may_have_files_of_their_own(tmp_path):
    touch(tmp_path, "a_RV.nii.gz", "a_left_kidney.nii.gz", "b.nii.gz", "b_RV.nii.gz")
    found, unexpected = find_predictions(tmp_path, ["a", "b"], ["RV", "left kidney", "LV"])
    assert found["a"].by_label == {"RV": tmp_path / "a_RV.nii.gz", "left kidney": tmp_path / "a_left_kidney.nii.gz"}
    assert found["b"] == PredictionFiles(tmp_path / "b.nii.gz")
    assert unexpected == []


def test_a_case_is_not_taken_for_another_s_label(tmp_path):
    touch(tmp_path, "a_RV.png")
    found, _ = find_predictions(tmp_path, ["a", "a_RV"], ["RV"])
    assert found["a"].paths == []
    assert found["a_RV"].whole == tmp_path / "a_RV.png"


def test_a_file_that_may_be_of_two_structures_is_refused(tmp_path):
    touch(tmp_path, "a.png")
    labels = ["left kidney", "left_kidney"]
    assert find_predictions(tmp_path, ["a"], labels)[0]["a"].whole == tmp_path / "a.png"
    touch(tmp_path, "b_left_kidney.png")
    with pytest.raises(UserError, match="b_left_kidney would be of 'left kidney' of case 'b' and 'left_kidney'"):
        find_predictions(tmp_path, ["a", "b"], labels)


def test_cases_that_are_not_asked_for_are_not_unexpected(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    _, unexpected = find_predictions(tmp_path, ["a"], ["RV"], known=["a", "b"])
    assert unexpected == []


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["a.nii", "a.nii.gz"], r"case 'a' has two predictions, .*a\.nii.*a\.nii"),
        (["x.png"], r"no prediction of any of the 1 cases, such as a\.nii\.gz .* but x, \.\.\."),
        ([], "no mask at all"),
    ],
)
def test_folders_that_cannot_be_meant_are_refused(names, sentence, tmp_path):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=sentence):
        find_predictions(tmp_path, ["a"], ["RV"])


def test_an_absent_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: there is no such folder"):
        find_predictions(tmp_path / "nowhere", ["a"], ["RV"])


@pytest.mark.parametrize("change", ["shape", "spacing", "origin", "direction"])
def test_another_grid_is_an_error_that_names_both(change, tmp_path):
    affine, shape = OBLIQUE.copy(), (6, 5, 4)
    if change == "shape":
        shape = (6, 5, 3)
    elif change == "spacing":
        affine[:3, 2] *= 1.01
    elif change == "origin":
        affine[0, 3] += 0.01
    else:
        affine[:3, 0] *= -1
    path = write_volume(tmp_path / "a.nii.gz", np.ones(shape), affine)
    reference = geometry((6, 5, 4), OBLIQUE)
    with pytest.raises(OtherGridError) as raised:
        read_prediction(path, "label.nii.gz", reference, resample=False)
    for part in (str(path), "label.nii.gz", describe_grid(reference), describe_grid(read_geometry(path)), "--resample"):
        assert part in str(raised.value)


def test_rounding_of_a_header_is_no_other_grid(tmp_path):
    affine = OBLIQUE.copy()
    affine[:3] += 1e-5
    path = write_volume(tmp_path / "a.nii.gz", np.ones((6, 5, 4)), affine)
    mask, resampled = read_prediction(path, "", geometry((6, 5, 4), OBLIQUE), resample=True)
    assert not resampled
    assert mask.all()


def slow_resample(mask, affine, onto):
    """Each voxel of the new grid takes the value of the old voxel that its centre lies in."""
    found = np.zeros(onto.shape, dtype=mask.dtype)
    for index in itertools.product(*map(range, onto.shape)):
        place = np.linalg.inv(affine) @ onto.affine @ [*index, 1]
        voxel = np.floor(place[:3] + 0.5).astype(int)
        if all(0 <= v < n for v, n in zip(voxel, mask.shape, strict=True)):
            found[index] = mask[tuple(voxel)]
    return found


@pytest.mark.parametrize("affine", [OBLIQUE, np.diag([-0.7, 1.3, 2.1, 1.0]), np.diag([1.9, -1.9, 3.1, 1.0])])
def test_resampling_is_that_of_a_loop(affine):
    mask = np.random.default_rng(0).integers(0, 4, (7, 6, 5)).astype(np.int32)
    onto = geometry((5, 6, 4), [[0.8, 0.1, 0, 1.2], [-0.1, 0.8, 0, -2.3], [0, 0, 1.7, 3.1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(resample_onto(mask, affine, onto), slow_resample(mask, affine, onto))


def test_resampling_keeps_physical_positions(tmp_path):
    """A box of 2 x 2 x 2 mm, drawn on a grid twice as fine whose axes are turned."""
    fine = np.zeros((16, 16, 16))
    fine[4:8, 8:12, 2:6] = 1
    turned = np.array([[0, 0, -0.5, 7.25], [0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0, 1]])
    path = write_volume(tmp_path / "a.nii.gz", fine, turned)
    mask, resampled = read_prediction(path, "", geometry((8, 8, 8), np.eye(4)), resample=True)
    assert resampled
    world = nib.affines.apply_affine(turned, np.argwhere(fine))
    np.testing.assert_allclose(np.argwhere(mask).mean(axis=0), world.mean(axis=0))
    assert mask.sum() == 8


def test_grids_apart_are_not_resampled(tmp_path):
    affine = np.eye(4)
    affine[0, 3] = 100
    path = write_volume(tmp_path / "a.nii.gz", np.ones((4, 4, 4)), affine)
    with pytest.raises(OtherGridError, match="do not overlap"):
        read_prediction(path, "", geometry((4, 4, 4), np.eye(4)), resample=True)


def test_frames_of_another_size_are_not_resampled(tmp_path):
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(OtherGridError, match=r"7 x 9 pixels.*8 x 9 pixels.*no world coordinates"):
        read_prediction(tmp_path / "a.png", "", Geometry((8, 9), None, None, True), resample=True)
