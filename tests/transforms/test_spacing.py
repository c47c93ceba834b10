from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged, Spacingd

from monai_ext.transforms.spacing import SafeSpacingd


@pytest.fixture
def request_of_monai_label(tmp_path) -> dict[str, str]:
    """A request as MONAI Label hands it to preprocessing: the path stands under image_path, too."""
    path = str(tmp_path / "study.nii.gz")
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((6, 8, 4)).astype(np.float32), np.diag([2, 2, 5, 1])), path
    )
    return {"image": path, "image_path": path, "device": "cpu"}


def preprocessing(spacing: type[Spacingd]) -> Compose:
    return Compose(
        [
            LoadImaged("image", ensure_channel_first=True, image_only=False),
            spacing("image", pixdim=(1.0, 1.0, 5.0)),
        ]
    )


def test_monais_own_fails_on_a_request(request_of_monai_label):
    """Fixed upstream? Then SafeSpacingd has no use any more."""
    with pytest.raises(RuntimeError, match="applying transform") as error:
        preprocessing(Spacingd)(request_of_monai_label)
    assert "'str' object has no attribute 'update'" in str(error.value.__cause__)


def test_a_request_is_resampled_and_keeps_its_items(request_of_monai_label):
    done = preprocessing(SafeSpacingd)(request_of_monai_label)
    without = {key: value for key, value in request_of_monai_label.items() if key != "image_path"}
    expected = preprocessing(Spacingd)(without)
    assert torch.equal(done["image"].as_tensor(), expected["image"].as_tensor())
    assert torch.equal(done["image"].affine, expected["image"].affine)
    assert done["image_path"] == request_of_monai_label["image_path"]
    assert done.keys() == expected.keys() | {"image_path"}
    assert torch.equal(torch.as_tensor(done["image_meta_dict"]["affine"]), done["image"].affine)


def test_its_inverse_is_monais(request_of_monai_label):
    transform = preprocessing(SafeSpacingd)
    done = transform(request_of_monai_label)
    done["pred"] = MetaTensor(torch.ones(2, *done["image"].shape[1:]))
    inverted = Invertd("pred", transform, orig_keys="image")(done)["pred"]
    assert inverted.shape == (2, 6, 8, 4)
    np.testing.assert_allclose(inverted.affine, np.diag([2, 2, 5, 1]), atol=1e-6)


def test_inverse_leaves_the_request_alone(request_of_monai_label):
    spacing = SafeSpacingd("image", pixdim=(1.0, 1.0, 5.0))
    loaded = LoadImaged("image", ensure_channel_first=True)(request_of_monai_label)
    back = spacing.inverse(spacing(loaded))
    assert back["image"].shape == loaded["image"].shape
    assert back["image_path"] == request_of_monai_label["image_path"]
