from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_ext.errors import UserError
from monai_ext.inferers.p2sam import PLACE, P2SamInferer
from monai_ext.inferers.place import Place
from monai_ext.inferers.reference import Reference
from monai_ext.inferers.slice_features import dice
from monai_ext.inferers.tuned_p2sam import TunedP2SamInferer

SIZE = (40, 64)
LABELS = {"lesion": 1}


@pytest.fixture
def label(disc) -> np.ndarray:
    return np.stack([disc(SIZE, (14, 20), 6)] * 2, axis=-1)


@pytest.fixture
def loader(make_loader, make_image, label):
    return make_loader({"a": (make_image(1, (*SIZE, 2)), label)}, LABELS)


def segment(inferer, network, image) -> torch.Tensor:
    return inferer(image[None], network, "a", "a")[0, 0].as_tensor()


def test_the_expected_mask_follows_scanner_coordinates_and_the_shift(make_image, label):
    reference = Reference(make_image(1, (*SIZE, 2)), torch.as_tensor(label)[None])
    target = make_image(1, (*SIZE, 2))
    place = Place(reference, [0, None], target, True)
    assert place.shift == (0, 0)
    assert torch.equal(place.mask(0, 1), torch.as_tensor(label[..., 0]) == 1)
    assert place.mask(1, 1) is None
    assert place.mask(0, 9) is None
    moved = target.clone()
    moved.affine[:2, 3] -= 4  # its first pixel lies where the fifth of the reference does, along both axes
    there = Place(reference, [0, 1], moved, True, (0, 0)).mask(0, 1)
    assert there.nonzero().float().mean(dim=0).tolist() == pytest.approx([14 - 4, 20 - 4])


def test_no_place_is_the_paper(tiny_network, make_image, loader):
    network, image = tiny_network(0), make_image(2, (*SIZE, 2))
    plain = segment(P2SamInferer(LABELS, loader), network, image)
    assert torch.equal(plain, segment(P2SamInferer(LABELS, loader, place="none"), network, image))


def test_a_mask_ends_where_the_prior_does(tiny_network, make_image, loader, label):
    network, image = tiny_network(0), make_image(2, (*SIZE, 2))
    found = segment(P2SamInferer(LABELS, loader, place=["cut"]), network, image)[..., 0] > 0
    rows, columns = found.nonzero().T
    width = max(network.stride, 0.75 * np.sqrt(label[..., 0].sum() / np.pi))
    assert bool(((rows - 14) ** 2 + (columns - 20) ** 2 <= (6 + 2 * width + 10) ** 2).all())


@pytest.mark.slow
@pytest.mark.parametrize("merge", ["mean", "points"])
def test_a_tuned_decoder_is_prompted_and_the_network_stays_as_it_was(tiny_network, make_image, loader, merge):
    network, image = tiny_network(0), make_image(2, (*SIZE, 2))
    before = [parameter.clone() for parameter in network.parameters()]
    inferer = TunedP2SamInferer(LABELS, loader, steps=4, learning_rate=1e-2, merge=merge, place="prior")
    first, second = segment(inferer, network, image), segment(inferer, network, image)
    assert torch.equal(first, second)
    assert not torch.equal(first, segment(P2SamInferer(LABELS, loader, place="prior"), network, image))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_the_self_check_repeats_the_reference_once(tiny_network, make_image, loader):
    network, image = tiny_network(0), make_image(2, (*SIZE, 2))
    inferer = P2SamInferer(LABELS, loader, place="prior")
    _, details = inferer.segment_case(image[None], network, "a", "a")
    checked = {row["features"]["self_check"] for row in details.rows if "features" in row}
    assert len(checked) == 1
    assert inferer.place == PLACE


PIECES_AND_NEIGHBOURS = [*PLACE, "neighbours"]


@pytest.fixture
def stack(make_image, disc) -> tuple[MetaTensor, np.ndarray]:
    """An image of three slices that hold the structure, and its label."""
    return make_image(1, (*SIZE, 3)), np.stack([disc(SIZE, (14, 20), 6)] * 3, axis=-1)


def chain_cost(mask: torch.Tensor, rows: list[dict]) -> float:
    """What choosing together makes least."""
    costs = [row["distance"] for row in rows]
    apart = [1 - dice(mask[::2, ::2, k], mask[::2, ::2, k + 1]) for k in range(len(rows) - 1)]
    return sum(costs) + sum((a + b) / 2 * c for a, b, c in zip(costs[:-1], costs[1:], apart, strict=True))


@pytest.mark.slow
def test_neighbouring_slices_choose_together(tiny_network, make_image, make_loader, stack):
    network, gains = tiny_network(0), []
    for seed in (2, 3):
        image = make_image(seed, (*SIZE, 3))
        costs = []
        for place in ("none", ["neighbours"]):
            inferer = P2SamInferer(LABELS, make_loader({"a": stack}, LABELS), n_pos=(1, 4), place=place)
            logits, details = inferer.segment_case(image[None], network, "a", "a")
            costs.append(chain_cost(logits[0, 0].as_tensor() > 0, details.rows))
            for row in details.rows:
                assert row["n_pos"] + row["n_neg"] == len(row["points"])
                assert row["features"]["distance"] == row["distance"]
        gains.append(costs[0] - costs[1])
    assert min(gains) > -1e-6
    assert max(gains) > 1e-3


@pytest.mark.slow
def test_a_tuned_decoder_merges_what_neighbours_chose(tiny_network, make_image, make_loader, stack):
    network, image = tiny_network(0), make_image(2, (*SIZE, 3))
    options = {"steps": 2, "place": PIECES_AND_NEIGHBOURS}
    merged, alone = (
        segment(TunedP2SamInferer(LABELS, make_loader({"a": stack}, LABELS), merge=merge, **options), network, image)
        for merge in ("mean", "points")
    )
    assert not torch.equal(merged, alone)


@pytest.mark.slow
def test_a_patient_who_lies_elsewhere_is_found_before_slices_are_matched(tiny_network, make_loader, make_image, stack):
    network, elsewhere = tiny_network(0), make_image(1, (*SIZE, 3))
    elsewhere.affine[:3, 3] += torch.tensor([9.0, -6, 5])  # one slice further, and 9 and 6 pixels
    label, masks, slices = stack[1], {}, {}
    for fit, image in [("translation", stack[0]), ("translation", elsewhere), ("none", elsewhere)]:
        loader = make_loader({"a": (make_image(1, (*SIZE, 3)), label)}, LABELS)
        inferer = P2SamInferer(LABELS, loader, place="prior", shift_fit=fit)
        logits, details = inferer.segment_case(image[None], network, "a", "a", self_check=False)
        masks[fit, image is elsewhere] = logits[0, 0].as_tensor() > 0
        slices[fit, image is elsewhere] = [row["reference_slice"] for row in details.rows]
    assert slices["translation", True] == ["0", "1", "2"]
    assert slices["none", True] == ["1", "2", ""]
    assert dice(masks["translation", True], masks["translation", False]) > 0.9


def test_shift_fits_that_cannot_be(loader):
    with pytest.raises(UserError, match="choose one of phase, translation, none"):
        P2SamInferer(LABELS, loader, shift_fit="rigid")
    with pytest.raises(UserError, match="needs --slice_match position"):
        P2SamInferer(LABELS, loader, shift_fit="translation", slice_match="relative")


def test_pieces_as_text_or_as_a_list(loader):
    assert P2SamInferer(LABELS, loader, place="cut, points").place == ("points", "cut")
    assert P2SamInferer(LABELS, loader, place=["cut", "points"]).place == ("points", "cut")


@pytest.mark.parametrize("place", ["somewhere", [], ["points", "none"]])
def test_unknown_pieces_are_refused(loader, place):
    with pytest.raises(UserError, match="choose none, prior"):
        P2SamInferer(LABELS, loader, place=place)


@pytest.mark.parametrize("options", [{"mode": "official"}, {"slice_match": "middle"}, {"slice_match": "chunks"}])
@pytest.mark.parametrize("use", [{"place": "prior"}, {"previous_box": "region"}])
def test_where_a_place_says_nothing_it_is_refused(loader, options, use):
    with pytest.raises(UserError, match="needs --mode paper and --slice_match position or relative"):
        P2SamInferer(LABELS, loader, **use, **options)
