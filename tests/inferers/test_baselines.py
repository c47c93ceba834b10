from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_ext.errors import UserError
from monai_ext.inferers.baselines import CopyReferenceInferer, NoPromptInferer, OracleClickInferer
from monai_ext.inferers.follow_up import BACKGROUND
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


def statuses(inferer) -> dict[tuple[str, int], str]:
    return {(row["label"], row["slice"]): row["status"] for row in inferer.rows}


def test_copy_gives_the_reference_mask(loader, make_image, label):
    inferer = CopyReferenceInferer(LABELS, loader)
    logits = inferer(make_image(2, (*SIZE, 2))[None], None, "a", "a")[0].numpy()
    assert np.array_equal(logits > 0, np.stack([label == 1, label == 2]))
    assert statuses(inferer)[("organ", 1)] == "reference_absent"
    assert statuses(inferer)[("organ", 0)] == "ok"


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
    inferer = NoPromptInferer(LABELS, loader)
    logits = inferer(target[None], network, "a", "a")[0]
    with torch.no_grad():
        embeddings = network.encode(target[..., 0][None].as_tensor())
        empty = Prompt(torch.zeros(0, 2), torch.zeros(0))
        expected = network.to_image(network.decode(embeddings, [empty])[0], embeddings.size)[0, 0]
    torch.testing.assert_close(logits[0, ..., 0].as_tensor(), expected, atol=1e-5, rtol=0)
    assert torch.equal(logits[0, ..., 0], logits[1, ..., 0])
    assert statuses(inferer)[("organ", 1)] == "reference_absent"
    assert (logits[1, ..., 1] == BACKGROUND).all()


def test_oracle_click_is_the_deepest_point_of_the_true_mask(loader, make_image, tiny_network, label):
    network, target = tiny_network(2), make_image(2, (*SIZE, 2))
    truth = torch.tensor(label).roll(4, dims=1)
    inferer = OracleClickInferer(LABELS, loader)
    logits = inferer(target[None], network, "a", "a", oracle_label=truth[None, None])[0]
    for row in inferer.rows:
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
