from __future__ import annotations

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged
from PIL import Image

from monai_ext.data.case_details import CaseDetails
from monai_ext.data.case_reader import CaseReader
from monai_ext.engines.case_evaluator import CaseEvaluator
from monai_ext.evaluation.slice_picture import COLOURS
from monai_ext.handlers.overlay import NEGATIVE, POSITIVE, OverlayWriter, choose, choose_slices
from monai_ext.inferers.case_inferer import CaseInferer
from monai_ext.transforms import MergeLabelsd, SamInputd

LABELS = {"organ": 1, "lesion": 2}
BRIGHT = 250.0


def item(shape=(40, 36, 6), spacing=(1.0, 1.0, 4.0), **parts):
    """An RAS volume, bright at the patient's right front, and its batch item in the input frame."""
    array = torch.full((1, *shape), 20.0)
    array[0, shape[0] * 3 // 4 :, shape[1] * 3 // 4 :] = BRIGHT
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    batch = SamInputd(keys="image", image_size=64)({"image": MetaTensor(array, affine=affine)})
    return {"case": "a", "patient": "p1", "visit": 2, **batch, **parts}, affine


def mask(shape=(40, 36, 6), value=1, at=(slice(5, 12), slice(4, 10), slice(2, 4))) -> torch.Tensor:
    array = torch.zeros((1, *shape), dtype=torch.int32)
    array[(0, *at)] = value
    return array


def write(tmp_path, batch, pred, rows=(), references=(), **options) -> np.ndarray:
    output = {"pred": pred, "details": CaseDetails(list(rows), references=list(references))}
    writer = OverlayWriter(tmp_path, LABELS, **options)
    writer(SimpleNamespace(state=SimpleNamespace(batch=[batch], output=[output])))
    return np.asarray(Image.open(tmp_path / "overlays" / f"{batch['case']}.png").convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: str, tolerance: int = 12) -> np.ndarray:
    return (np.abs(picture - 255 * np.array(to_rgb(colour))) <= tolerance).all(axis=-1)


def body(picture: np.ndarray) -> np.ndarray:
    """The picture without title and legend."""
    return picture[40:-60]


def test_picture_is_upright_and_the_fill_lies_where_the_label_is(tmp_path):
    batch, affine = item()
    pred = mask(at=(slice(2, 10), slice(2, 10), slice(3, 4)))  # patient left, back: bottom right of the picture
    picture = body(write(tmp_path, batch, MetaTensor(pred, affine=affine)))
    rows, columns = np.nonzero(picture[..., 2] - picture[..., 0] > 25)  # bluish
    assert rows.mean() > 0.6 * len(picture)
    assert columns.mean() > 0.6 * picture.shape[1]
    without = body(write(tmp_path, item()[0], MetaTensor(torch.zeros_like(pred), affine=affine), max_slices=1))
    rows, columns = np.nonzero(without.min(axis=-1) > 200)
    assert np.median(rows) < 0.4 * len(without)
    assert np.median(columns) < 0.4 * without.shape[1]


@pytest.mark.slow
def test_true_label_is_dashed(tmp_path):
    batch, affine = item()
    pred = MetaTensor(torch.zeros_like(mask()), affine=affine)
    assert near(body(write(tmp_path, batch, pred)), COLOURS[1]).sum() == 0
    batch["label"] = MetaTensor(mask(value=2, at=(slice(10, 30), slice(10, 30), slice(3, 4))), affine=affine)
    line = near(body(write(tmp_path, batch, pred)), COLOURS[1])
    rows, columns = np.nonzero(line)
    box = np.ptp(rows) * np.ptp(columns)
    assert np.ptp(rows) > 150
    assert np.ptp(columns) > 150
    assert 0 < line.sum() < 0.05 * box
    outline = near(body(write(tmp_path, item()[0], MetaTensor(batch["label"].clone(), affine=affine))), COLOURS[1])
    assert line.sum() < 0.8 * outline.sum()  # the prediction's has no gaps


def test_what_slices_were_chosen_for_stands_on_them(tmp_path):
    batch, affine = item(shape=(40, 36, 20))
    pred = mask((40, 36, 20), at=(slice(5, 12), slice(4, 10), slice(0, 20)))
    pred[0, 5:20, 4:20, 7] = 1
    details = CaseDetails([{"label": "organ", "slice": 13, "score": 0.2, "flagged": True}])
    scene = OverlayWriter(tmp_path, LABELS)._scene(batch, {"pred": MetaTensor(pred, affine=affine), "details": details})
    assert "1 of 1 slices to look at" in scene.title
    chosen = choose(scene, 4)
    assert len(chosen) == 4
    assert {index: why for index, why in chosen.items() if why} == {7: "largest", 13: "lowest score"}


def test_the_reference_is_the_last_tile(tmp_path):
    batch, affine = item()
    pred = MetaTensor(mask(), affine=affine)
    loaded = SimpleNamespace(image=batch["image"], label=torch.zeros_like(batch["image"]).as_tensor())
    loaded.label[0, 20:40, 20:40, 1] = 2
    rows = [{"label": "organ", "slice": 2, "reference": "base", "reference_slice": "1"}]
    details = CaseDetails(rows, references=[loaded])
    panel = OverlayWriter(tmp_path, LABELS)._scene(batch, {"pred": pred, "details": details}).reference
    assert panel.title == "reference base, slice 1"
    assert panel.masks["lesion"].sum() == 400
    without, shown = write(tmp_path / "without", batch, pred, rows), write(tmp_path, batch, pred, rows, [loaded])
    assert near(shown, COLOURS[1]).sum() > near(without, COLOURS[1]).sum() + 50


def test_the_reference_that_is_shown_is_the_one_that_served_the_slice(tmp_path):
    batch, affine = item()
    short = SimpleNamespace(image=batch["image"][..., :1], label=torch.zeros_like(batch["image"]).as_tensor())
    long = SimpleNamespace(image=batch["image"], label=short.label.clone())
    long.label[0, 20:40, 20:40, 3] = 2
    rows = [{"label": "organ", "slice": 2, "reference": "second", "reference_number": 1, "reference_slice": "3"}]
    details = CaseDetails(rows, references=[short, long])
    panel = OverlayWriter(tmp_path, LABELS)._scene(
        batch, {"pred": MetaTensor(mask(), affine=affine), "details": details}
    )
    assert panel.reference.title == "reference second, slice 3"
    assert panel.reference.masks["lesion"].sum() == 400


def test_a_structure_in_the_lung_is_not_shown_in_black(tmp_path):
    hu = np.full((40, 36, 3), -800.0, dtype=np.float32)
    hu[10:16, 10:16] = 40
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "ct.nii.gz")
    read = LoadImaged("image", reader=CaseReader(), ensure_channel_first=True)
    batch = SamInputd("image", 64)(read({"image": str(tmp_path / "ct.nii.gz")}))
    batch["image"] = (batch["image"] + 160).clamp(0, 255)  # what the soft-tissue window leaves of it
    pred = mask((40, 36, 3), at=(slice(10, 16), slice(10, 16), slice(0, 3)))
    case = {"case": "a", "modality": "CT", **batch}
    scene = OverlayWriter(tmp_path, LABELS)._scene(case, {"pred": MetaTensor(pred, affine=torch.from_numpy(affine))})
    assert np.median(scene.shown) > 80
    assert "lung window" in scene.title


def test_value_to_ignore_is_not_drawn(tmp_path):
    batch, affine = item()
    batch["label"] = MetaTensor(mask(value=4), affine=affine)
    writer = OverlayWriter(tmp_path, {"organ": 1})
    scene = writer._scene(batch, {"pred": MetaTensor(torch.zeros_like(mask()), affine=affine)})
    assert not scene.occupied.any()


def test_points_lie_where_the_input_frame_says(tmp_path):
    batch, affine = item()
    height, width = batch["image"].shape[1:3]
    rows = [
        {"label": "organ", "slice": 3, "points": [[0.25 * width, 0.25 * height, 1]]},
        {"label": "organ", "slice": 3, "points": [[0.75 * width, 0.75 * height, 0]]},
        {"label": "organ", "slice": 2, "status": "reference_absent"},
    ]
    pred = MetaTensor(mask(at=(slice(0, 40), slice(0, 36), slice(3, 4))), affine=affine)
    picture = body(write(tmp_path, batch, pred, rows))
    shape = np.array(picture.shape[:2])
    assert np.allclose(np.argwhere(near(picture, POSITIVE)).mean(axis=0) / shape, 0.25, atol=0.04)
    assert np.allclose(np.argwhere(near(picture, NEGATIVE)).mean(axis=0) / shape, 0.75, atol=0.04)


def test_same_input_same_bytes(tmp_path):
    files = []
    for name in ("first", "second"):
        batch, affine = item()
        write(
            tmp_path / name,
            {**batch, "label": MetaTensor(mask(), affine=affine)},
            MetaTensor(mask(), affine=affine),
        )
        files.append((tmp_path / name / "overlays" / "a.png").read_bytes())
    assert files[0] == files[1]


def test_pixels_have_the_right_aspect(tmp_path):
    batch, affine = item(spacing=(1.0, 2.0, 9.0))
    pred = MetaTensor(torch.zeros_like(mask()), affine=affine)
    picture = write(tmp_path, batch, pred, max_slices=1)
    dark = near(picture, "#141414", tolerance=3)  # grey 20: all but the bright corner
    rows, columns = dark.mean(axis=1) > 0.3, dark.mean(axis=0) > 0.3
    assert rows.sum() / columns.sum() == pytest.approx(72 / 40, rel=0.03)


@pytest.mark.parametrize("channels", [1, 3])
def test_frame_and_labels_that_overlap(tmp_path, channels):
    frame = MetaTensor(torch.full((channels, 48, 32), 100.0))
    batch = {"case": "f", **SamInputd(keys="image", image_size=48)({"image": frame})}
    pred = torch.zeros(2, 48, 32, dtype=torch.uint8)
    pred[0, 4:20, 4:20] = 1
    pred[1, 10:30, 10:30] = 1
    picture = body(write(tmp_path, batch, MetaTensor(pred)))
    inside = {tuple(colour) for colour in picture[picture.std(axis=-1) > 3]}
    assert len(inside) >= 3  # either label alone and both


def test_label_on_another_grid_is_an_error(tmp_path):
    batch, affine = item()
    batch["label"] = MetaTensor(mask((20, 20, 6)), affine=affine)
    with pytest.raises(ValueError, match="label has shape"):
        write(tmp_path, batch, MetaTensor(mask(), affine=affine))


class AboveGrey(CaseInferer):
    """Says of a volume that it was prompted on slice 1, and nothing of a frame."""

    def segment_case(self, inputs, network, *args, **entries):
        rows = [{"label": "lesion", "slice": 1, "points": [[10, 10, 1]]}] if inputs.shape[-1] > 1 else []
        return inputs.mean(dim=1, keepdim=True) - 128, CaseDetails(rows)


@pytest.mark.slow
def test_every_case_of_an_evaluator_gets_a_picture(tmp_path):
    grey = np.zeros((24, 20, 3), dtype=np.float32)
    grey[4:12, 5:15] = 200
    affine = np.array([[0, 0, 5.0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # a sagittal stack
    nib.save(nib.Nifti1Image(grey, affine), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image((grey > 0).astype(np.uint8), affine), tmp_path / "label.nii.gz")
    Image.fromarray(grey[..., :1].repeat(3, axis=2).astype(np.uint8)).save(tmp_path / "frame.png")
    items = [
        {"case": "a", "image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")},
        {"case": "b", "image": str(tmp_path / "frame.png")},
    ]
    preprocessing = Compose(
        [
            LoadImaged(keys="image", reader=CaseReader()),
            LoadImaged(keys="label", reader=CaseReader(label=True), allow_missing_keys=True),
            EnsureChannelFirstd(keys=["image", "label"], allow_missing_keys=True),
            SamInputd(keys="image", image_size=48),
        ]
    )
    postprocessing = Compose(
        [
            Invertd(keys="pred", transform=preprocessing, orig_keys="image", nearest_interp=False),
            MergeLabelsd(keys="pred", values=[1]),
        ]
    )
    CaseEvaluator(
        device=torch.device("cpu"),
        dataset=Dataset(items, preprocessing),
        network=torch.nn.Identity(),
        inferer=AboveGrey(),
        postprocessing=postprocessing,
        handlers=[OverlayWriter(tmp_path, {"lesion": 1})],
    ).run()
    volume, frame = (
        np.asarray(Image.open(tmp_path / "overlays" / f"{case}.png").convert("RGB")).astype(int) for case in "ab"
    )
    assert near(body(volume), COLOURS[0]).any()  # the true label's line
    assert near(body(volume), POSITIVE).any()
    assert (body(frame)[..., 2] - body(frame)[..., 0] > 25).any()  # the bluish prediction


@pytest.mark.parametrize(
    ("occupied", "max_slices", "expected"),
    [
        ("000000", 4, [1, 2, 3, 4]),
        ("000", 4, [0, 1, 2]),
        ("010110", 4, [1, 3, 4]),
        ("1111111", 3, [0, 3, 6]),
        ("0111", 1, [2]),
    ],
)
def test_choose_slices(occupied, max_slices, expected):
    assert choose_slices([flag == "1" for flag in occupied], max_slices) == expected
