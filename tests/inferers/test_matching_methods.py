"""What Matcher, PANet, label propagation and GF-SAM share: they find, they say what is absent, they stay upright."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from monai_ext.errors import UserError
from monai_ext.inferers.gf_sam import GfSamInferer
from monai_ext.inferers.label_propagation import LabelPropagationInferer
from monai_ext.inferers.matcher import MatcherInferer
from monai_ext.inferers.panet import PanetInferer
from monai_ext.inferers.proposals import decode_in_chunks, union_of
from monai_ext.inferers.reference_inferer import BACKGROUND
from monai_ext.prompts.prompt import Prompt

SIZE = (40, 64)  # H x W: three of eight rows of cells are padding
LABELS = {"lesion": 1, "organ": 2}
METHODS = [MatcherInferer, PanetInferer, LabelPropagationInferer, GfSamInferer]


@pytest.fixture
def label(disc) -> np.ndarray:
    """[H, W, 2]: both structures on the first slice, the lesion alone on the second."""
    both = np.where(disc(SIZE, (14, 20), 9), 1, 2 * disc(SIZE, (25, 45), 8))
    return np.stack([both, (both == 1).astype(np.int64)], axis=-1)


@pytest.fixture
def loader(make_loader, make_image, label):
    tiny = np.zeros((*SIZE, 1), dtype=np.int64)
    tiny[39, 63], tiny[0, 0] = 1, 2
    full = np.ones((*SIZE, 1), dtype=np.int64)
    image = make_image(1, (*SIZE, 2))
    files = {"a": (image, label), "tiny": (image[..., :1], tiny), "full": (image[..., :1], full)}
    return make_loader(files, LABELS), make_loader({"full": files["full"]}, {"lesion": 1})


@pytest.mark.parametrize("method", METHODS)
def test_status_says_what_is_absent_and_agrees_with_the_mask(method, loader, make_image, tiny_network):
    inferer = method(LABELS, loader[0])
    logits, details = inferer.segment_case(make_image(2, (*SIZE, 2))[None], tiny_network(2), "a", "a")
    logits = logits[0].as_tensor()
    assert logits.shape == (2, *SIZE, 2)
    status = {(row["label"], row["slice"]): row["status"] for row in details.rows}
    assert status["organ", 1] == "reference_absent"
    for (name, k), value in status.items():
        plane = logits[list(LABELS).index(name), ..., k]
        assert value in ("ok", "no_foreground", "reference_absent")
        assert bool((plane > 0).any()) == (value == "ok")
        assert value == "ok" or bool((plane == BACKGROUND).all())


@pytest.mark.parametrize("method", METHODS)
def test_single_pixels_in_the_corners_do_not_stop_it(method, loader, make_image, tiny_network):
    inferer = method(LABELS, loader[0])
    _, details = inferer.segment_case(make_image(2, (*SIZE, 1))[None], tiny_network(2), "tiny", "tiny")
    assert {row["status"] for row in details.rows} <= {"ok", "no_foreground"}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_reference_without_background_does_not_stop_it(method, loader, make_image, tiny_network):
    inferer = method({"lesion": 1}, loader[1])
    _, details = inferer.segment_case(make_image(2, (*SIZE, 1))[None], tiny_network(2), "full", "full")
    assert {row["status"] for row in details.rows} <= {"ok", "no_foreground"}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_mask(method, loader, make_image, tiny_network):
    network, target = tiny_network(2), make_image(2, (*SIZE, 1))[None]
    first = method(LABELS, loader[0])(target, network, "a", "a")
    assert torch.equal(first.as_tensor(), method(LABELS, loader[0])(target, network, "a", "a").as_tensor())


def test_propagation_from_an_image_to_itself_gives_its_labels_back(make_loader, make_image, tiny_network):
    """Of whole cells: each is most like itself."""
    label = np.zeros((*SIZE, 1), dtype=np.int64)
    label[8:24, 16:40] = 1
    image = make_image(1, (*SIZE, 1))
    loader = make_loader({"a": (image, label)}, {"lesion": 1})
    inferer = LabelPropagationInferer({"lesion": 1}, loader, top_k=1)
    logits = inferer(image[None], tiny_network(2), "a", "a")[0, 0, ..., 0]
    centres = logits[3::8, 3::8].as_tensor() > 0  # at cell centres upsampling changes no sign
    assert torch.equal(centres, torch.as_tensor(label[3::8, 3::8, 0]) == 1)


@torch.no_grad()
def test_panet_is_the_nearest_prototype_done_slowly(loader, make_image, tiny_network, label):
    network, target = tiny_network(2), make_image(2, (*SIZE, 2))
    logits = PanetInferer(LABELS, loader[0])(target[None], network, "a", "a")[0, ..., 0].as_tensor()
    reference = network.encode(make_image(1, (*SIZE, 2))[..., 0][None].as_tensor()).features[0]
    features = network.encode(target[..., 0][None].as_tensor()).features[0]
    scores = torch.zeros(3, 8, 8)
    for value in range(3):
        total, weight = torch.zeros(32), 0
        for y, x in np.argwhere(label[..., 0] == value):
            total, weight = total + reference[:, y // 8, x // 8], weight + 1
        for i in range(8):
            for j in range(8):
                scores[value, i, j] = 20 * torch.cosine_similarity(total / weight, features[:, i, j], dim=0)
    upsampled = F.interpolate(scores[None], (64, 64), mode="bilinear")[0, :, :40]
    for channel, (one, *others) in enumerate([(1, 0, 2), (2, 0, 1)]):
        expected = upsampled[one] - upsampled[others].amax(dim=0)
        assert bool((expected > 0).any())
        torch.testing.assert_close(logits[channel], expected, atol=1e-3, rtol=0)


def test_chunks_and_union_change_nothing(make_image, tiny_network):
    network = tiny_network(2)
    with torch.no_grad():
        embeddings = network.encode(make_image(2, (*SIZE, 1))[..., 0][None].as_tensor())
        prompts = [Prompt(torch.tensor([[5.0 + 6 * k, 20.0]] * (1 + k % 2)), torch.ones(1 + k % 2)) for k in range(7)]
        logits = decode_in_chunks(network, embeddings, prompts, chunk=3)
        single = torch.cat([network.decode(embeddings, [p])[0][:, 0] for p in prompts])
        united = union_of(network, logits, embeddings.size)
        expected = network.to_image(logits[:, None], embeddings.size)[:, 0].amax(dim=0)
    torch.testing.assert_close(logits, single, atol=1e-5, rtol=0)
    torch.testing.assert_close(united, expected)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (MatcherInferer, {"centres": 0}, "matcher_centres is 0"),
        (MatcherInferer, {"merged": 1.5}, "matcher_merged is 1.5"),
        (MatcherInferer, {"sizes": (6, 4)}, r"matcher_sizes is \[6, 4\]"),
        (LabelPropagationInferer, {"top_k": 0}, "propagation_top_k is 0"),
        (LabelPropagationInferer, {"temperature": 0}, "propagation_temperature is 0"),
        (LabelPropagationInferer, {"radius": -1}, "propagation_radius is -1"),
    ],
)
def test_impossible_numbers_are_refused(method, options, words):
    with pytest.raises(UserError, match=words):
        method(LABELS, None, **options)
