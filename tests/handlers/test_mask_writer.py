from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged
from PIL import Image

from monai_ext.data.case_reader import CaseReader
from monai_ext.data.images import read_label
from monai_ext.errors import UserError
from monai_ext.handlers.mask_writer import MaskWriter, label_masks
from monai_ext.transforms import Intensityd, MergeLabelsd, SamInputd

LABELS = {"dark grey": 3, "light": 255}
GREY = {"dark grey": 90, "light": 200}


class Threshold(torch.nn.Module):
    """Two maps of logits [B, 2, H, W, D]: grey value above 45 and, stronger, above 145."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        grey = image.mean(dim=1, keepdim=True)
        return torch.cat([grey - 45, 10 * (grey - 145)], dim=1)


def evaluate(items, handlers, labels, overlap=False) -> None:
    preprocessing = Compose(
        [
            LoadImaged(keys="image", reader=CaseReader()),
            EnsureChannelFirstd(keys="image"),
            Intensityd(keys="image", intensity={"window": [0, 255]}),
            SamInputd(keys="image", image_size=64),
            LoadImaged(keys="label", reader=CaseReader(label=True), allow_missing_keys=True),
            EnsureChannelFirstd(keys="label", allow_missing_keys=True),
        ]
    )
    postprocessing = Compose(
        [
            Invertd(keys="pred", transform=preprocessing, orig_keys="image", nearest_interp=False),
            MergeLabelsd(keys="pred", values=list(labels.values()), overlap=overlap),
        ]
    )
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, preprocessing), batch_size=1),
        network=Threshold(),
        inferer=SimpleInferer(),
        postprocessing=postprocessing,
        val_handlers=handlers,
    ).run()


def blocks(shape) -> np.ndarray:
    """Integer mask with the values of LABELS, asymmetric."""
    mask = np.zeros(shape, dtype=np.int32)
    mask[3:16, 4:9] = LABELS["dark grey"]
    mask[8:20, 11:15] = LABELS["light"]
    return mask


def as_grey(mask: np.ndarray) -> np.ndarray:
    return sum((mask == value) * GREY[label] for label, value in LABELS.items())


@pytest.fixture
def volume_case(tmp_path):
    """A sagittal, oblique volume whose Threshold segmentation is ``blocks``."""
    affine = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.1, 0.2, -0.1) @ np.array([[0, 0, 4.0], [-1, 0, 0], [0, 1, 0]]), [3, 4, 5]
    )
    mask = blocks((24, 20, 3))
    nib.save(nib.Nifti1Image(as_grey(mask).astype(np.float32), affine), tmp_path / "scan one.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "label.nii.gz")
    item = {"case": "a", "patient": "p", "visit": 1, "image": str(tmp_path / "scan one.nii.gz")}
    return item, mask, affine


@pytest.fixture
def frame_case(tmp_path):
    mask = blocks((24, 20))
    Image.fromarray(np.repeat(as_grey(mask).astype(np.uint8).T[..., None], 3, axis=2)).save(tmp_path / "f.png")
    return {"case": "f", "image": str(tmp_path / "f.png")}, mask


def test_mask_lies_on_the_grid_of_the_image(volume_case, tmp_path):
    item, mask, affine = volume_case
    evaluate([item], [MaskWriter(tmp_path, LABELS)], LABELS)
    written = nib.load(tmp_path / "masks" / "a.nii.gz")
    assert np.array_equal(written.dataobj, mask)
    assert np.allclose(written.affine, affine, atol=1e-6)
    assert written.get_data_dtype() == np.uint8


def test_frame_gives_a_picture(frame_case, tmp_path):
    item, mask = frame_case
    evaluate([item], [MaskWriter(tmp_path, LABELS)], LABELS)
    picture = np.asarray(Image.open(tmp_path / "masks" / "f.png"))
    assert picture.shape == (20, 24)
    assert np.array_equal(picture.T, mask)


def test_labels_that_overlap_get_a_file_each(volume_case, tmp_path):
    item, mask, _ = volume_case
    evaluate([item], [MaskWriter(tmp_path, LABELS)], LABELS, overlap=True)
    files = {path.name: read_label(path) for path in (tmp_path / "masks").iterdir()}
    assert set(files) == {"a_dark_grey.nii.gz", "a_light.nii.gz"}
    assert np.array_equal(files["a_dark_grey.nii.gz"], np.where(mask > 0, 3, 0))
    assert np.array_equal(files["a_light.nii.gz"], np.where(mask == 255, 255, 0))


def test_structures_of_one_file_name_are_refused_before_any_is_written(volume_case, tmp_path):
    labels = {"a b": 3, "a_b": 255}
    with pytest.raises(UserError, match="the mask file a_a_b would be of 'a b' of case 'a' and 'a_b' of case 'a'"):
        evaluate([volume_case[0]], [MaskWriter(tmp_path, labels)], labels, overlap=True)
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("pred", [np.array([[[0, 7]]]), np.array([[[0, 1]]])])
def test_single_label_keeps_its_value_and_its_plain_name(pred):
    ((name, mask),) = MaskWriter("out", {"lesion": 7})._masks("a", pred)
    assert name == "a"
    assert mask.tolist() == [[0, 7]]


def test_several_cases_do_not_mix(volume_case, frame_case, tmp_path):
    evaluate([volume_case[0], frame_case[0]], [MaskWriter(tmp_path, LABELS)], LABELS)
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"a.nii.gz", "f.png"}


def test_channels_must_be_the_labels():
    with pytest.raises(ValueError, match="3 channels"):
        label_masks(np.zeros((3, 2, 2)), LABELS)
