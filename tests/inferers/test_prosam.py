"""ProSAM's inferer: volumes slice by slice, several references, strategies, uncertainty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from monai_ext.errors import UserError
from monai_ext.evaluation.review import read_calibration
from monai_ext.inferers.prosam import ProsamInferer, _features
from monai_ext.inferers.reference_inferer import BACKGROUND
from monai_ext.networks.prompt_distribution import PromptDistributionNet, join_shots
from monai_ext.networks.reference_encoder import EncoderReference
from monai_ext.prompts.distribution import Sampler
from monai_ext.prompts.sampled_masks import MERGES, mask_uncertainty, merge_logits
from monai_ext.transforms.request import REQUEST
from monai_ext.transforms.views import View

BUNDLES = Path(__file__).parents[2] / "bundles"
SIZE = (40, 64)
LABELS = {"lesion": 1, "organ": 2}


@pytest.fixture(scope="module")
def network(tiny_network):
    return tiny_network(4)


@pytest.fixture(scope="module")
def make_net(network):
    def make(sampler: str = "t_eq7"):
        torch.manual_seed(1)
        reference = EncoderReference(network, 32)
        return PromptDistributionNet(reference, 32, prompts=5, hidden=32, sampler=Sampler(sampler)).eval()

    return make


@pytest.fixture
def references(make_image, disc):
    both = np.where(disc(SIZE, (14, 18), 9), 1, 2 * disc(SIZE, (26, 46), 9))
    first = np.stack([both, both, 0 * both], axis=-1)
    second = np.stack([both * (both == 1), both, both], axis=-1)
    return {"a": (make_image(1, (*SIZE, 3)), first), "b": (make_image(2, (*SIZE, 3)), second)}


@pytest.fixture
def make_inferer(make_loader, references, make_net):
    def make(sampler: str = "t_eq7", **options):
        return ProsamInferer(LABELS, make_loader(references, LABELS), make_net(sampler), **options)

    return make


@pytest.fixture
def target(make_image):
    return make_image(7, (*SIZE, 3))[None]


def slow_distribution(net, network, target, references, names, k, value):
    shots = []
    for name in names:
        image, label = references[name]
        mask = label[..., k] == value
        if not mask.any():
            continue
        with torch.no_grad():
            query = net.features(target[0].as_tensor()[None, ..., k], 64)
            support = net.features(image.as_tensor()[None, ..., k], 64)
            shots.append(net(query, support, net.masks(torch.from_numpy(mask)[None], 64)))
    return join_shots(shots) if shots else None


def decode(network, target, k, tokens):
    with torch.no_grad():
        embeddings = network.encode(target[0].as_tensor()[None, ..., k])
        low, _ = network.decode_tokens(embeddings, tokens)
        return network.to_image(low, embeddings.size)[:, 0]


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_the_mean_prompt_same_as_the_slow_version(network, make_inferer, target, references, names):
    inferer = make_inferer(uncertainty=False)
    logits, details = inferer.segment_case(target, network, names, names)
    logits = logits[0].as_tensor()
    for k in range(3):
        for channel, value in enumerate(LABELS.values()):
            prompts = slow_distribution(inferer.prompts, network, target, references, names, k, value)
            row = next(r for r in details.rows if r["slice"] == k and r["label"] == list(LABELS)[channel])
            if prompts is None:
                assert row["status"] == "reference_absent"
                continue
            expected = decode(network, target, k, prompts.mean)[0]
            if row["status"] == "no_foreground":
                assert not (expected > 1e-3).any()
                assert (logits[channel, ..., k] == BACKGROUND).all()
            else:
                torch.testing.assert_close(logits[channel, ..., k], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", MERGES)
def test_other_strategies_merge_the_draws(network, make_inferer, target, references, strategy):
    inferer = make_inferer(strategy=strategy, samples=4, uncertainty=False)
    logits = inferer(target, network, "a", "a")[0].as_tensor()
    prompts = slow_distribution(inferer.prompts, network, target, references, ["a"], 0, 1)
    drawn = decode(network, target, 0, inferer._draw(prompts, 0, 0))
    merged = merge_logits(drawn, strategy)
    expected = merged if (merged > 0).any() else torch.full(SIZE, BACKGROUND)
    torch.testing.assert_close(logits[0, ..., 0], expected, rtol=1e-3, atol=1e-3)


def test_uncertainty_is_that_of_the_draws(network, make_inferer, target, references):
    inferer = make_inferer(samples=4)
    _, details = inferer.segment_case(target, network, "a", "a")
    prompts = slow_distribution(inferer.prompts, network, target, references, ["a"], 1, 2)
    found = mask_uncertainty(decode(network, target, 1, inferer._draw(prompts, 1, 1)))
    torch.testing.assert_close(details.maps["variance"][1, ..., 1], found.variance, rtol=1e-3, atol=1e-4)
    row = next(r for r in details.rows if r["slice"] == 1 and r["label"] == "organ")
    assert row["agreement"] == pytest.approx(found.agreement, abs=1e-2)
    assert row["entropy"] == pytest.approx(found.entropy, abs=1e-2)
    assert row["sigma"] > 0
    assert details.maps["variance"].shape == (2, *SIZE, 3)
    assert not details.maps["variance"][..., 2].any(), "nothing was sought there"


def test_masks_do_not_depend_on_whether_uncertainty_is_asked_for(network, make_inferer, target):
    one = make_inferer(uncertainty=True)(target, network, "a", "a")
    other = make_inferer(uncertainty=False)(target, network, "a", "a")
    assert torch.equal(one, other)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_uncertainty(network, make_inferer, target):
    maps = []
    for seed in (0, 0, 1):
        inferer = make_inferer(seed=seed, samples=3)
        _, details = inferer.segment_case(target, network, "a", "a")
        maps.append(details.maps["variance"])
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


def test_vrp_sam_has_nothing_to_draw_from(network, make_inferer, target):
    for options in ({}, {"uncertainty": False, "strategy": "majority"}):
        with pytest.raises(UserError, match="no distribution"):
            make_inferer("none", **options)
    inferer = make_inferer("none", uncertainty=False)
    assert not inferer.segment_case(target, network, "a", "a")[1].maps


def test_features_of_the_review_score_are_those_of_the_table(network, make_inferer, target):
    _, details = make_inferer(samples=3, views=2).segment_case(target, network, "a", "a")
    (row,) = [r for r in details.rows if r["slice"] == 1 and r["label"] == "organ"]
    spread = {"agreement", "entropy", "variance_ratio"}
    assert {"certainty", "predicted_iou", *spread, *(f"view_{name}" for name in spread)} <= set(row["features"])
    assert all(row["features"][name] == row[name] for name in (*spread, "predicted_iou"))
    assert all("features" not in r for r in details.rows if r["slice"] == 2), "nothing was sought there"


def test_empty_masks_of_all_draws_do_not_look_like_the_surest():
    """Two empty masks agree, and so the shipped calibration took a structure that was missed by all for a good mask."""
    told = mask_uncertainty(torch.full((3, 8, 8), -5.0))
    assert (told.agreement, told.entropy, told.variance_ratio, told.found) == (1.0, 0.0, 0.0, False)
    features = _features(told)
    assert set(features.values()) == {None}
    calibration = read_calibration(BUNDLES / "prosam" / "configs" / "review_prompts.json")
    assert calibration.score(features) < calibration.threshold
    held = torch.full((3, 8, 8), -5.0)
    held[:, 2:5, 2:5] = 5.0
    assert calibration.score(_features(mask_uncertainty(held))) > calibration.threshold


def test_the_answer_to_a_request_tells_how_far_drawn_masks_agree(network, make_inferer, target):
    answer: dict = {}
    target.meta[REQUEST] = {"labels": LABELS, "answer": answer}
    _, details = make_inferer(samples=3).segment_case(target, network, "a", "a")
    ok = [row["agreement"] for row in details.rows if row["label"] == "organ" and row["status"] == "ok"]
    found = [agreement for agreement in ok if agreement is not None]
    assert answer["agreement"].keys() == LABELS.keys()
    assert answer["agreement"]["organ"] == (pytest.approx(np.mean(found)) if found else None)


@pytest.mark.slow
def test_views_change_neither_masks_nor_draws(network, make_inferer, target):
    (plain, without), (same, details) = (
        make_inferer(samples=2, views=views).segment_case(target, network, "a", "a") for views in (0, 3)
    )
    assert torch.equal(plain, same)
    assert torch.equal(without.maps["variance"], details.maps["variance"])


def test_views_that_change_nothing_agree(network, make_inferer, target, monkeypatch):
    still = [View(0.0, 1.0, (0.0, 0.0), 1.0)] * 2
    monkeypatch.setattr("monai_ext.inferers.prosam.draw_views", lambda count, rng: still)
    _, details = make_inferer(uncertainty=False, views=2).segment_case(target, network, "a", "a")
    found = [row["features"] for row in details.rows if "features" in row]
    assert found
    assert all(one["view_agreement"] == pytest.approx(1) and one["view_variance_ratio"] < 1e-6 for one in found)


def test_one_slice_can_serve_all(network, make_inferer, target):
    inferer = make_inferer(reference_slice="largest", uncertainty=False)
    _, details = inferer.segment_case(target, network, "a", "a")
    assert "reference_absent" not in {row["status"] for row in details.rows}
    for label, value in inferer.labels.items():
        largest = int((details.references[0].label[0] == value).sum(dim=(0, 1)).argmax())
        assert {row["reference_slice"] for row in details.rows if row["label"] == label} == {str(largest)}


@pytest.mark.parametrize(
    ("held", "rule", "served"),
    [
        ([1], None, [1, 1, 1, 1, 1]),
        ([1, 3], None, [1, 1, 1, 3, 3]),
        ([1, 2], None, [None, 1, 2, None, None]),
        ([1, 2], "nearest", [1, 1, 2, 2, 2]),
        ([1], "matched", [None, 1, None, None, None]),
    ],
)
def test_slices_that_were_annotated_one_by_one_serve_all_slices(
    network, make_image, make_loader, make_net, disc, held, rule, served
):
    label = np.zeros((*SIZE, 5), np.int64)
    label[..., held] = disc(SIZE, (14, 18), 9)[..., None]
    load = make_loader({"a": (make_image(1, (*SIZE, 5)), label)}, {"lesion": 1})
    inferer = ProsamInferer({"lesion": 1}, load, make_net(), uncertainty=False, reference_slice=rule)
    _, details = inferer.segment_case(make_image(7, (*SIZE, 5))[None], network, "a", "a")
    for row, slice_ in zip(details.rows, served, strict=True):
        assert (row["status"] == "reference_absent") == (slice_ is None)
        assert slice_ is None or row["reference_slice"] == str(slice_)


@pytest.mark.parametrize("reference_slice", ["matched", "largest"])
def test_a_reference_without_the_structure_is_not_named(
    network, make_loader, make_net, references, target, reference_slice
):
    image, label = references["a"]
    both = {"lesions": (image, label * (label == 1)), "a": (image, label)}
    inferer = ProsamInferer(
        LABELS, make_loader(both, LABELS), make_net(), uncertainty=False, reference_slice=reference_slice
    )
    _, details = inferer.segment_case(target, network, list(both), list(both))
    rows = {row["label"]: row for row in details.rows if row["slice"] == 1}
    assert rows["organ"]["reference_number"] == 1
    assert "+" not in rows["organ"]["reference_slice"]
    assert rows["lesion"]["reference_number"] == 0
    assert "+" in rows["lesion"]["reference_slice"]


@pytest.mark.parametrize("annotation", ["box", "scribble", "points"])
def test_annotations_are_derived_from_the_label(network, make_inferer, target, annotation):
    one, other = (make_inferer(annotation=annotation, uncertainty=False)(target, network, "a", "a") for _ in range(2))
    assert torch.equal(one, other)
    whole = make_inferer(uncertainty=False)(target, network, "a", "a")
    assert not torch.equal(one, whole)


def test_references_are_encoded_once(network, make_inferer, target, make_image, monkeypatch):
    inferer, encoded = make_inferer(uncertainty=False), []
    features = inferer.prompts.features
    monkeypatch.setattr(inferer.prompts, "features", lambda *a: encoded.append(1) or features(*a))
    inferer(target, network, "a", "a")
    first = len(encoded)
    inferer(make_image(8, (*SIZE, 3))[None], network, "a", "a")
    assert first == 2 * 2 + 2, "two structures on two reference slices, and two target slices"
    assert len(encoded) == first + 2, "the target's slices alone"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "median"}, "strategy 'median'"),
        ({"annotation": "text"}, "annotation 'text'"),
        ({"samples": 0}, "K is 0"),
        ({"samples": 1}, "an uncertainty needs 2 or more"),
        ({"views": 1}, "--views is 1"),
        ({"reference_slice": "best"}, "reference_slice 'best'"),
        ({"slice_match": "x"}, "slice_match 'x'"),
    ],
)
def test_impossible_options_are_refused(make_inferer, options, words):
    with pytest.raises(UserError, match=words):
        make_inferer(**options)
