from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from monai_ext.data.scribble_slices import ScribbleDataset, store_scribbles
from monai_ext.engines.segmentor import segment_slices
from monai_ext.errors import UserError
from monai_ext.inferers.segmentor import SegmentorInferer
from monai_ext.networks.dual_branch_unet import build_segmentor
from monai_ext.transforms.labels import MergeLabelsd
from monai_ext.transforms.sam_input import SamInputd


class GreyClasses(nn.Module):
    """Class 0 where the image is dark, 1 where it is mid grey, 2 where it is bright; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([0.0, 0.4, 0.8]))
        self.given: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.given.append(image)
        return -((image - self.centres[None, :, None, None]) ** 2)


def bodies(shape: tuple[int, ...]) -> np.ndarray:
    """[X, Y, Z] or [W, H] with values 0, 1, 2: one ellipsoid in another, off the centre; a cylinder in few slices."""
    places = np.meshgrid(*(np.linspace(-1, 1, n) if n > 6 else np.full(n, -0.1) for n in shape), indexing="ij")
    distance = sum(((place + 0.1) / 0.8) ** 2 for place in places)
    return np.where(distance < 0.35, 2, np.where(distance < 1, 1, 0))


def affine_of(spacing: tuple[float, ...], degrees: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = (12.0, -30.0, 7.0)
    return affine


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(
    ("shape", "spacing", "degrees"),
    [
        pytest.param((60, 60, 4), (1.0, 1.0, 5.0), (0, 0, 0), id="square"),
        pytest.param((72, 40, 3), (1.0, 1.0, 8.0), (0, 0, 0), id="not square"),
        pytest.param((40, 64, 5), (2.1, 0.9, 6.0), (0, 0, 0), id="pixels not square"),
        pytest.param((7, 60, 66), (9.0, 1.0, 1.2), (0, 0, 0), id="sagittal slices"),
        pytest.param((56, 48, 6), (1.1, 1.1, 7.0), (25, -35, 15), id="oblique"),
        pytest.param((48, 56, 1), (1.2, 1.2, 8.0), (10, 0, 0), id="one slice"),
        pytest.param((150, 130, 2), (0.6, 0.6, 6.0), (0, 0, 0), id="larger than the segmentor's size"),
        pytest.param((70, 50), (1.0, 1.0), (0, 0, 0), id="frame"),
    ],
)
def test_masks_lie_where_the_structures_are_in_the_files_own_geometry(shape, spacing, degrees):
    truth = bodies(shape)
    affine = affine_of(spacing, degrees) if len(shape) == 3 else np.eye(4)
    image = MetaTensor(torch.from_numpy(truth[None] * 102.0).float(), affine=torch.from_numpy(affine))
    preprocessing = Compose([SamInputd(keys="image", image_size=64)])
    item = preprocessing({"image": image})
    logits = SegmentorInferer(image_size=48, batch=2)(item["image"][None], GreyClasses())
    assert logits.shape == (1, 2, *item["image"].shape[1:])
    item["pred"] = logits[0]
    invert = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)
    pred = MergeLabelsd("pred", values=[1, 2])(invert(item))["pred"]
    assert pred.shape[1:] == truth.shape
    np.testing.assert_allclose(pred.affine, affine)
    assert dice(pred[0].numpy() == 2, truth == 2) > 0.9
    assert dice(pred[0].numpy() > 0, truth > 0) > 0.95


@pytest.fixture
def volume() -> MetaTensor:
    """[1, 40, 30, 5] input frame, values with fractions."""
    rng = np.random.default_rng(0)
    smooth = nn.functional.interpolate(torch.from_numpy(rng.uniform(0, 255, (1, 1, 8, 6, 5))), (40, 30, 5))[0]
    return MetaTensor(smooth.float(), affine=torch.eye(4))


@pytest.fixture
def stored(volume, tmp_path: Path) -> ScribbleDataset:
    """The same volume as training cuts it, seen at 32 pixels."""
    scribble = MetaTensor(torch.ones_like(volume), affine=torch.eye(4))
    for name in ("image", "scribble"):
        (tmp_path / name).write_text(name)
    case = {"case": "one", "patient": "one", "image": str(tmp_path / "image"), "scribble": str(tmp_path / "scribble")}
    cases = store_scribbles(
        [case], lambda item: {**item, "image": volume, "scribble": scribble}, tmp_path, {"x": 1, "y": 2}, 9
    )
    return ScribbleDataset(cases, 32)


def test_the_network_sees_what_training_showed_it(volume, stored):
    network = GreyClasses()
    SegmentorInferer(image_size=32, batch=2)(volume[None], network)
    assert [len(images) for images in network.given] == [2, 2, 1]
    assert torch.equal(torch.cat(network.given), torch.stack([stored[k]["image"] for k in range(5)]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 48])
def test_masks_are_those_that_the_rounds_make_of_stored_slices(volume, stored, size):
    torch.manual_seed(0)
    network = build_segmentor(3)
    dataset = ScribbleDataset(stored.data, size)
    logits = SegmentorInferer(image_size=size, batch=1)(volume[None], network)
    found = MergeLabelsd("pred", values=[1, 2])({"pred": logits[0]})["pred"][0].numpy().transpose(2, 0, 1)
    assert np.array_equal(found, segment_slices(network, stored.images[0], dataset, "cpu"))


def test_batches_do_not_matter(volume):
    torch.manual_seed(0)
    network = build_segmentor(3)
    one, all_at_once = (SegmentorInferer(32, batch)(volume[None], network) for batch in (1, 8))
    torch.testing.assert_close(one, all_at_once)


def test_logits_are_those_above_the_background(volume):
    square = MetaTensor(volume[:, :30])  # 30 x 30, padded to 32 and not resampled: the frame's size stays
    network = GreyClasses()
    found = SegmentorInferer(32)(nn.functional.pad(square, (0, 0, 0, 2, 0, 2))[None], network)
    plain = network(torch.cat(network.given[:1]))
    expected = (plain[:, 1:] - plain[:, :1]).permute(1, 2, 3, 0)[None]
    assert torch.equal(found.as_tensor(), expected)


def test_colours_are_averaged(volume):
    coloured = torch.cat([volume * 0.5, volume, volume * 0.25]).round()  # as slices are stored
    grey = coloured.mean(dim=0, keepdim=True).round()
    assert torch.equal(*(SegmentorInferer(32)(x[None], GreyClasses()).as_tensor() for x in (coloured, grey)))


def test_the_main_branch_can_be_asked_for(volume):
    torch.manual_seed(0)
    network = build_segmentor(3)
    out, main = (SegmentorInferer(32, branch=branch)(volume[None], network) for branch in ("out", "main"))
    assert not torch.equal(out, main)
    network.joint_head = None  # the network's own output is then that of the main decoder
    assert torch.equal(SegmentorInferer(32)(volume[None], network), main)


@pytest.mark.parametrize("options", [{"image_size": 40}, {"image_size": 0}, {"batch": 0}, {"branch": "aux"}])
def test_impossible_options(options):
    with pytest.raises(UserError, match=next(iter(options)).replace("image_size", "--image_size")):
        SegmentorInferer(**options)
