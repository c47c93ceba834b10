from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from scipy import ndimage

from monai_ext.errors import UserError
from monai_ext.inferers.p2sam import P2SamInferer
from monai_ext.inferers.previous import PreviousFrame, find_mask
from monai_ext.inferers.reference import Reference
from monai_ext.networks.sam import Embeddings

SIZE = (64, 96)
LEFT, RIGHT = (30, 22), (34, 70)  # centres, (row, column)
CELL, GREY = 10, {"target": 100.0, "other": 112.0}


def image_of(array: np.ndarray, affine: np.ndarray | None = None, axis: str = "S") -> MetaTensor:
    meta = {"plane_size": array.shape[1:3], "slice_axis": axis, "filename_or_obj": "image"}
    return MetaTensor(torch.as_tensor(array, dtype=torch.float32), affine=torch.as_tensor(affine), meta=meta)


def grid_affine(pixel: float, thickness: float, origin: tuple[float, float, float], turn: float = 0.0) -> np.ndarray:
    """Voxel (row, column, slice) -> mm, rows along -y and columns along -x, turned about z by ``turn`` degrees."""
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array([[0, -pixel, 0], [-pixel, 0, 0], [0, 0, thickness]])
    affine[:3, 3] = origin
    return affine


def previous(there, here, rows, columns, *, matches=(1,), by_position=True, sizes=((40, 64, 2), (50, 50, 1))):
    label = torch.zeros(1, *sizes[0], dtype=torch.int64)
    label[0, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1, 1] = 2
    frame = Reference(image_of(np.zeros((1, *sizes[0])), there), label)
    return PreviousFrame(frame, list(matches), image_of(np.zeros((1, *sizes[1])), here), by_position)


# ---------------------------------------------------------------------------------------- where a structure was


@pytest.mark.parametrize("turn", [0, 15])
def test_a_box_keeps_its_place_in_scanner_coordinates(turn):
    there = grid_affine(1.0, 5.0, (40, 30, 0), turn)
    here = grid_affine(1.5, 5.0, (46, 33, 5))
    rows, columns = (10, 21), (16, 33)
    box = previous(there, here, rows, columns).box(0, 2)
    moved = [
        (np.linalg.inv(here) @ there @ [row, column, 1, 1])[[1, 0]] for row, column in itertools.product(rows, columns)
    ]
    expected = [*np.min(moved, axis=0), *np.max(moved, axis=0)]
    assert np.allclose(box, expected, atol=1e-4)
    if not turn:
        assert np.allclose(box, [22 / 1.5, 13 / 1.5, 39 / 1.5, 24 / 1.5], atol=1e-4)


def test_of_a_video_a_box_keeps_its_share_of_the_view():
    eye = np.eye(4)
    at = previous(eye, eye, (0, 19), (32, 63), by_position=False)  # the upper right quarter of 40 x 64
    assert at.box(0, 2).tolist() == pytest.approx([32.5 * 50 / 64 - 0.5, 0.125, 49, 23.875])
    same = previous(eye, eye, (3, 19), (5, 30), by_position=False, sizes=((40, 64, 2), (40, 64, 1)))
    assert same.box(0, 2).tolist() == [5, 3, 30, 19]


def test_a_box_is_cut_at_the_image_and_gone_outside():
    there = grid_affine(1.0, 5.0, (0, 0, 0))
    assert previous(there, grid_affine(1.0, 5.0, (-20, -15, 5)), (10, 21), (16, 33)).box(0, 2).tolist() == [0, 0, 13, 6]
    assert previous(there, grid_affine(1.0, 5.0, (-90, 0, 5)), (10, 21), (16, 33)).box(0, 2) is None


def test_what_was_absent_has_no_box():
    there = grid_affine(1.0, 5.0, (0, 0, 0))
    assert previous(there, there, (10, 21), (16, 33)).box(0, 1) is None
    assert previous(there, there, (10, 21), (16, 33), matches=(None,)).box(0, 2) is None
    assert previous(there, there, (10, 21), (16, 33), matches=(0,)).box(0, 2) is None


@pytest.mark.parametrize("suffix", [".nii.gz", ".png"])
def test_the_mask_of_the_case_before_is_found_by_its_name(tmp_path, suffix):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / f"visit.1{suffix}").touch()
    assert find_mask(tmp_path, "visit.1") == tmp_path / "masks" / f"visit.1{suffix}"
    with pytest.raises(UserError, match="previous case 'visit'"):
        find_mask(tmp_path, "visit")


# ------------------------------------------------------------------------------------------------ two alike cells


class Microscope:
    """A network that sees grey values and grows a mask from its points.

    The features of a cell are its mean grey value on soft bins. The mask of a prompt is every body that holds one of
    its positive points, or, where ``spills`` is true, all bodies as soon as one does. A box is not looked at.
    """

    image_size, stride, grid = 96, 8, 12
    device = torch.device("cpu")

    def __init__(self, spills: bool = False) -> None:
        self.spills, self.boxes = spills, []

    def encode(self, images):
        grey = torch.zeros(1, 1, 96, 96)
        grey[..., : images.shape[-2], : images.shape[-1]] = images
        self.bodies = ndimage.label(grey[0, 0].numpy() > 50)[0]
        mean = torch.nn.functional.avg_pool2d(grey, 8)[:, 0]
        bins = torch.arange(0.0, 256.0, 6.0)[:, None, None]
        return Embeddings(torch.exp(-(((mean - bins) / 8) ** 2))[None], (images.shape[-2], images.shape[-1]))

    def decode(self, embeddings, prompts, mask_input=None):
        self.boxes.append(prompts[0].box)
        masks = []
        for prompt in prompts:
            x, y = prompt.points[prompt.labels == 1].round().long().T.numpy()
            hit = set(self.bodies[y, x]) - {0}
            inside = self.bodies > 0 if self.spills and hit else np.isin(self.bodies, list(hit))
            masks.append(torch.where(torch.as_tensor(inside), 5.0, -5.0))
        return torch.stack(masks)[:, None], torch.zeros(len(prompts), 1)

    def to_image(self, logits, size):
        return logits[..., : size[0], : size[1]]


def picture(left: float, right: float, shift: int = 0) -> np.ndarray:
    """Two cells on black, [H, W], moved down by ``shift``."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    drawn = np.zeros(SIZE)
    for (row, column), grey in ((LEFT, left), (RIGHT, right)):
        drawn[np.hypot(y - row - shift, x - column) <= CELL] = grey
    return drawn


FRAMES = [picture(100, 112), picture(106, 108, 2), picture(112, 100, 4), picture(112, 100, 6)]
"""From the third frame on, the right cell looks as the left one did in the first."""


def follow(tmp_path, make_loader, network: Microscope, use: bool | str) -> list[tuple[int, int]]:
    """Serve all later frames from the first, writing each mask: pixels of the mask on the left and the right cell."""
    images = [image_of(frame[None, ..., None], np.eye(4), axis="") for frame in FRAMES]
    own = FRAMES[0] * (np.arange(SIZE[1]) < SIZE[1] / 2) > 0
    references = {"frame0": (images[0], own.astype(np.int64)[..., None])}
    references |= {f"frame{k}": (images[k], None) for k in range(1, len(FRAMES))}
    (tmp_path / "masks").mkdir()

    loader = make_loader(references, {"cell": 1})
    found = []

    def load(item):
        mask = (
            references["frame0"][1] if item["label"] == "frame0" else np.asarray(Image.open(item["label"]))[..., None]
        )
        return {"image": references[item["image"]][0], "label": torch.as_tensor(mask.copy()).long()[None]}

    loader.transform = load
    inferer = P2SamInferer({"cell": 1}, loader, (1, 2), (1, 1), previous_box=use, run_dir=tmp_path)
    for k in range(1, len(FRAMES)):
        before = {"previous": f"frame{k - 1}", "previous_image": f"frame{k - 1}"} if k > 1 else {}
        mask = inferer(images[k][None], network, "frame0", "frame0", **before)[0, 0, ..., 0].numpy() > 0
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "masks" / f"frame{k}.png")
        found.append((int(mask[:, : SIZE[1] // 2].sum()), int(mask[:, SIZE[1] // 2 :].sum())))
    return found


def test_without_the_frame_before_the_other_cell_is_taken(tmp_path, make_loader):
    found = follow(tmp_path, make_loader, Microscope(), False)
    assert found[0][0] > 250
    assert found[0][1] == 0
    assert [left for left, _ in found[1:]] == [0, 0]
    assert min(right for _, right in found[1:]) > 250


@pytest.mark.parametrize("use", [True, "points", "both", "region"])
def test_with_the_frame_before_the_cell_is_kept(tmp_path, make_loader, use):
    found = follow(tmp_path, make_loader, Microscope(), use)
    assert min(left for left, _ in found) > 250
    assert max(right for _, right in found) == 0


def test_only_box_and_both_give_the_box_to_the_decoder(tmp_path, make_loader):
    given = {}
    for use in ("points", "box", "both", "region"):
        network = Microscope()
        (tmp_path / use).mkdir()
        follow(tmp_path / use, make_loader, network, use)
        given[use] = network.boxes
    assert given["points"] == given["region"] == [None] * 3
    row, column = LEFT
    for use in ("box", "both"):
        assert given[use][0].tolist() == [column - CELL, row - CELL, column + CELL, row + CELL], "of the reference"


def test_a_decoder_that_spills_is_cut_to_the_region_alone(tmp_path, make_loader):
    for use in ("points", "region"):
        (tmp_path / use).mkdir()
    spilled = follow(tmp_path / "points", make_loader, Microscope(spills=True), "points")
    assert min(right for _, right in spilled) > 250
    kept = follow(tmp_path / "region", make_loader, Microscope(spills=True), "region")
    assert min(left for left, _ in kept) > 250
    assert max(right for _, right in kept) == 0


def test_an_unknown_use_of_the_box_is_refused(make_loader):
    with pytest.raises(
        UserError, match="previous_box 'mask' is unknown: choose false, true, points, box, both, region"
    ):
        P2SamInferer({"cell": 1}, make_loader({}, {"cell": 1}), previous_box="mask")


@pytest.mark.parametrize(
    ("given", "use"), [(True, "region"), ("true", "region"), ("False", ""), (False, ""), (None, ""), ("box", "box")]
)
def test_true_and_false_may_be_text(make_loader, given, use):
    assert P2SamInferer({"cell": 1}, make_loader({}, {"cell": 1}), previous_box=given).previous_box == use


def test_the_frame_before_needs_its_folder(make_loader):
    inferer = P2SamInferer({"cell": 1}, make_loader({}, {"cell": 1}), previous_box=True)
    image = image_of(FRAMES[0][None, ..., None], np.eye(4), axis="")
    with pytest.raises(ValueError, match="previous_box needs run_dir"):
        inferer(image[None], Microscope(), previous="frame0", previous_image="frame0")


@pytest.mark.parametrize(("given", "expected"), [({}, "MR"), ({"previous_modality": ["CT"]}, "CT")])
def test_the_image_before_is_windowed_by_its_own_modality(tmp_path, make_loader, given, expected):
    image = image_of(FRAMES[1][None, ..., None], np.eye(4), axis="")
    mask = np.ones((*SIZE, 1), np.int64)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "frame0.png").touch()
    loader = make_loader({"frame0": (image, mask), str(tmp_path / "masks" / "frame0.png"): (image, mask)}, {"cell": 1})
    inferer = P2SamInferer({"cell": 1}, loader, previous_box=True, run_dir=tmp_path)
    inferer.begin_case(image, "MR", previous=["frame0"], previous_image=["frame0"], **given)
    assert loader.transform.loaded == [("frame0", expected)]
