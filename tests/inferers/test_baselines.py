from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_ext.errors import UserError
from monai_ext.inferers.baselines import (
    CopyReferenceInferer,
    NoPromptInferer,
    OracleClickInferer,
    correction_click,
)
from monai_ext.inferers.reference_inferer import BACKGROUND
from monai_ext.prompts.prompt import Prompt

SIZE = (40, 64)
LABELS = {"lesion": 1, "organ": 2}


@pytest.fixture
def label(disc) -> np.ndarray:
    """[H, W, 2]: both structures on the first slice, the lesion alone on the second."""
    both = np.where(disc(SIZE, (14, 20), 9), 1, 2 * disc(SIZE, (25, 45), 8))
    return np.stack([both, (both == 1).astype(np.int64)], axis=-1)


@pytest.fixture
def loader(make_loader, make_image, label):
    return make_loader({"a": (make_image(1, (*SIZE, 2)), label)}, LABELS)


def statuses(details) -> dict[tuple[str, int], str]:
    return {(row["label"], row["slice"]): row["status"] for row in details.rows}


def test_copy_gives_the_reference_mask(loader, make_image, label):
    inferer = CopyReferenceInferer(LABELS, loader)
    logits, details = inferer.segment_case(make_image(2, (*SIZE, 2))[None], None, "a", "a")
    assert np.array_equal(logits[0].numpy() > 0, np.stack([label == 1, label == 2]))
    assert statuses(details)[("organ", 1)] == "reference_absent"
    assert statuses(details)[("organ", 0)] == "ok"


def test_copy_to_another_grid_lays_the_mask_over_the_field_of_view(make_loader, make_image, disc):
    """A mask of whole 2 x 2 blocks is the same picture on half the pixels."""
    small = disc((20, 32), (8, 12), 5)
    large = np.kron(small, np.ones((2, 2), np.int64))
    target = make_image(2, (20, 32, 1))
    loader = make_loader({"a": (make_image(1, (40, 64, 1)), large[..., None])}, {"lesion": 1})
    logits = CopyReferenceInferer({"lesion": 1}, loader)(target[None], None, "a", "a")
    assert np.array_equal(logits[0, 0, ..., 0] > 0, small)


def test_copy_of_several_references_is_their_majority(make_loader, make_image, disc):
    masks = [disc(SIZE, (14, x), 9)[..., None] for x in (20, 23, 26)]
    references = {name: (make_image(i, (*SIZE, 1)), masks[i]) for i, name in enumerate("abc")}
    loader = make_loader(references, {"lesion": 1})
    logits = CopyReferenceInferer({"lesion": 1}, loader)(make_image(9, (*SIZE, 1))[None], None, [*"abc"], [*"abc"])
    assert np.array_equal(logits[0, 0] > 0, sum(masks) >= 2)


def test_no_prompt_is_one_mask_for_all_structures(loader, make_image, tiny_network):
    network, target = tiny_network(2), make_image(2, (*SIZE, 2))
    logits, details = NoPromptInferer(LABELS, loader).segment_case(target[None], network, "a", "a")
    logits = logits[0]
    with torch.no_grad():
        embeddings = network.encode(target[..., 0][None].as_tensor())
        empty = Prompt(torch.zeros(0, 2), torch.zeros(0))
        expected = network.to_image(network.decode(embeddings, [empty])[0], embeddings.size)[0, 0]
    torch.testing.assert_close(logits[0, ..., 0].as_tensor(), expected, atol=1e-5, rtol=0)
    assert torch.equal(logits[0, ..., 0], logits[1, ..., 0])
    assert statuses(details)[("organ", 1)] == "reference_absent"
    assert (logits[1, ..., 1] == BACKGROUND).all()


def test_oracle_click_is_the_deepest_point_of_the_true_mask(loader, make_image, tiny_network, label):
    network, target = tiny_network(2), make_image(2, (*SIZE, 2))
    truth = torch.tensor(label).roll(4, dims=1)
    inferer = OracleClickInferer(LABELS, loader)
    logits, details = inferer.segment_case(target[None], network, "a", "a", oracle_label=truth[None, None])
    logits = logits[0]
    for row in details.rows:
        mask = (truth[..., row["slice"]] == LABELS[row["label"]]).numpy()
        channel = logits[list(LABELS).index(row["label"]), ..., row["slice"]].as_tensor()
        if not mask.any():
            assert (row["label"], row["slice"], row["status"]) == ("organ", 1, "no_foreground")
            assert (channel == BACKGROUND).all()
            continue
        ((x, y, positive),) = row["points"]
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        assert depth[int(y), int(x)] == depth.max()
        assert (positive, row["n_pos"], row["n_neg"]) == (1, 1, 0)
        with torch.no_grad():
            embeddings = network.encode(target[..., row["slice"]][None].as_tensor())
            low, _ = network.decode(embeddings, [Prompt(torch.tensor([[x, y]]), torch.ones(1))])
        torch.testing.assert_close(channel, network.to_image(low, embeddings.size)[0, 0], atol=1e-5, rtol=0)


def test_oracle_click_without_the_truth_is_refused(loader, make_image, tiny_network):
    with pytest.raises(UserError, match=r"oracle click needs the target's label: overlay .*oracle_click\.yaml"):
        OracleClickInferer(LABELS, loader)(make_image(2, (*SIZE, 2))[None], tiny_network(2), "a", "a")


def test_more_clicks_do_not_change_the_first(loader, make_image, tiny_network, label):
    network, target = tiny_network(2), make_image(2, (*SIZE, 2))
    truth = torch.tensor(label).roll(4, dims=1)[None, None]
    one, three = OracleClickInferer(LABELS, loader), OracleClickInferer(LABELS, loader, clicks=3)
    expected, of_one = one.segment_case(target[None], network, "a", "a", oracle_label=truth)
    last, of_three = three.segment_case(target[None], network, "a", "a", oracle_label=truth)
    assert len(of_three.steps) == 3
    assert torch.equal(of_three.steps[0], expected[0].as_tensor())
    assert torch.equal(of_three.steps[0], of_one.steps[0])
    assert torch.equal(of_three.steps[2], last[0].as_tensor())
    for row, first in zip(of_three.rows, of_one.rows, strict=True):
        assert row.get("points", [])[:1] == first.get("points", [])


def test_further_clicks_correct_the_mask_and_keep_it_in_mind(loader, make_image, tiny_network, label):
    """Each is the correction of the mask before, decoded with all clicks so far and that mask's logits."""
    network, target = tiny_network(2), make_image(2, (*SIZE, 2))
    truth = torch.tensor(label).roll(4, dims=1)
    inferer = OracleClickInferer(LABELS, loader, clicks=4)
    _, details = inferer.segment_case(target[None], network, "a", "a", oracle_label=truth[None, None])
    corrected = 0
    for row in details.rows:
        if row["status"] != "ok":
            continue
        mask = (truth[..., row["slice"]] == LABELS[row["label"]]).numpy()
        low = None
        for number, step in enumerate(details.steps, start=1):
            points = torch.tensor(row["points"][:number])
            with torch.no_grad():
                embeddings = network.encode(target[..., row["slice"]][None].as_tensor())
                low, _ = network.decode(embeddings, [Prompt(points[:, :2], points[:, 2])], mask_input=low)
            logits = step[list(LABELS).index(row["label"]), ..., row["slice"]]
            torch.testing.assert_close(logits, network.to_image(low, embeddings.size)[0, 0], atol=1e-5, rtol=0)
            following = correction_click(mask, (logits > 0).numpy(), row["points"][:number])
            if number < 4:
                assert row["points"][number] == list(following)
                corrected += 1
        assert row["n_pos"] + row["n_neg"] == len(row["points"]) == 4
    assert corrected >= 9


class Painter:
    """A network that does what it is told: a disc for each positive click, none for each negative one."""

    image_size = 64

    def __init__(self, radius: float) -> None:
        self.radius, self.device, self.decoded = radius, torch.device("cpu"), 0

    def encode(self, image: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(size=tuple(image.shape[-2:]))

    def decode(self, embeddings: SimpleNamespace, prompts: list[Prompt], mask_input: torch.Tensor | None = None):
        self.decoded += 1
        height, width = embeddings.size
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        logits = -torch.ones(height, width)
        for (px, py), sign in zip(prompts[0].points, prompts[0].labels, strict=True):
            logits[(x - px) ** 2 + (y - py) ** 2 <= self.radius**2] = 1.0 if sign else -1.0
        return logits[None, None], None

    def to_image(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return logits


def test_each_click_makes_an_obedient_network_better(loader, make_image, label):
    truth = torch.tensor(label)
    inferer = OracleClickInferer(LABELS, loader, clicks=6)
    image = make_image(2, (*SIZE, 2))[None]
    _, details = inferer.segment_case(image, Painter(2), "a", "a", oracle_label=truth[None, None])
    for channel, value in enumerate(LABELS.values()):
        errors = [int(((step[channel] > 0) != (truth == value)).sum()) for step in details.steps]
        assert errors == sorted(errors, reverse=True)
        assert len(set(errors)) == 6


def test_a_mask_that_is_right_is_left_alone(make_loader, make_image, disc):
    lesion = disc(SIZE, (14, 20), 9)[..., None]
    loader = make_loader({"a": (make_image(1, (*SIZE, 1)), lesion)}, {"lesion": 1})
    inferer, network = OracleClickInferer({"lesion": 1}, loader, clicks=5), Painter(9)
    truth = torch.tensor(lesion)
    _, details = inferer.segment_case(
        make_image(2, (*SIZE, 1))[None], network, "a", "a", oracle_label=truth[None, None]
    )
    assert network.decoded == 1
    assert details.rows[0]["points"] == [[20, 14, 1]]
    assert all(torch.equal(step > 0, truth[None] > 0) for step in details.steps)


@pytest.mark.parametrize("clicks", [0, -1, 2.5, "3"])
def test_an_impossible_number_of_clicks_is_refused(clicks):
    with pytest.raises(UserError, match=f"clicks is {clicks}: give a whole number"):
        OracleClickInferer(LABELS, None, clicks=clicks)


def test_the_deeper_error_is_corrected_first():
    """A missed square of 5 pixels beside a false strip that is longer but thinner."""
    truth, predicted = np.zeros((20, 30), dtype=bool), np.zeros((20, 30), dtype=bool)
    truth[3:8, 3:8] = True
    predicted[12:15, 2:28] = True
    assert correction_click(truth, predicted) == (5, 5, 1)
    predicted |= truth
    assert correction_click(truth, predicted)[1:] == (13, 0)
    assert correction_click(truth, truth) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_click_is_the_deepest_pixel_of_the_error(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = (ndimage.gaussian_filter(rng.normal(size=(12, 14)), 1.5) > 0 for _ in range(2))
    x, y, sign = correction_click(truth, predicted)
    assert (bool(truth[y, x]), bool(predicted[y, x])) == ((True, False) if sign else (False, True))
    depths = [deepest(truth & ~predicted), deepest(predicted & ~truth)]
    region = truth & ~predicted if sign else predicted & ~truth
    assert distance_outside(region, y, x) == pytest.approx(max(depths))


def distance_outside(region: np.ndarray, y: int, x: int) -> float:
    """Distance of a pixel to the nearest one that is not of the region, all beyond the border included."""
    outside = np.argwhere(~np.pad(region, 1)) - 1
    return float(np.hypot(*(outside - (y, x)).T).min())


def deepest(region: np.ndarray) -> float:
    return max((distance_outside(region, y, x) for y, x in np.argwhere(region)), default=0.0)


def test_no_pixel_is_clicked_twice():
    truth = np.zeros((9, 9), dtype=bool)
    truth[4, 3:6] = True
    nothing = np.zeros_like(truth)
    clicked: list[tuple[int, int, int]] = []
    while (click := correction_click(truth, nothing, clicked)) is not None:
        clicked.append(click)
    assert sorted(clicked) == [(3, 4, 1), (4, 4, 1), (5, 4, 1)]
