"""Methods with a reference on few-shot tasks: their masks never depend on what is hidden.

The protocol EP2: one annotated slice of another patient serves the whole volume.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_ext.data.manifest import Case, DataList
from monai_ext.data.supports import pair_with_support
from monai_ext.inferers.baselines import CopyReferenceInferer
from monai_ext.inferers.gf_sam import GfSamInferer
from monai_ext.inferers.label_propagation import LabelPropagationInferer
from monai_ext.inferers.matcher import MatcherInferer
from monai_ext.inferers.p2sam import P2SamInferer
from monai_ext.inferers.panet import PanetInferer
from monai_ext.inferers.persam import PersamInferer
from monai_ext.inferers.reference import ReferenceLoader
from monai_ext.session.blocks import case_preprocessing

METHODS = [P2SamInferer, PersamInferer, MatcherInferer, PanetInferer]
ORGAN = {"spleen": 4}


def write_case(folder: Path, seed: int) -> Case:
    """A volume of 40 x 48 x 4 voxels; the spleen (4) is on slices 1 and 2, the liver (1) on all."""
    rng = np.random.default_rng(seed)
    label = np.zeros((40, 48, 4), np.uint8)
    label[4:16, 6:20], label[22 + seed : 34 + seed, 20:34, 1:3] = 1, 4
    image = 100 + 30.0 * label + 20 * ndimage.gaussian_filter(rng.normal(size=label.shape), (2, 2, 0))
    files = {}
    for what, array in (("image", image.astype(np.float32)), ("label", label)):
        files[what] = str(folder / f"{what}{seed}.nii.gz")
        nib.save(nib.Nifti1Image(array, np.diag([-2.0, -2.0, 8.0, 1.0])), files[what])
    return Case(case=f"case{seed}", patient=f"p{seed}", **files)


@pytest.fixture
def datalist(tmp_path) -> DataList:
    cases = [write_case(tmp_path, seed) for seed in range(2)]
    return DataList(dataset="Toy", modality="MR", labels={"liver": 1, **ORGAN}, cases=cases)


def segment(method, network, pair, shuffle: bool = False) -> np.ndarray:
    """Segment a query, its slices in another order if asked and put back afterwards: logits [1, H, W, D]."""
    reference = case_preprocessing(64, masks="label")
    inferer = method(ORGAN, ReferenceLoader(reference, ORGAN), slice_match="middle")
    item = case_preprocessing(64)(dict(pair))
    image = item["image"]
    order = np.random.default_rng(0).permutation(image.shape[-1]) if shuffle else np.arange(image.shape[-1])
    shuffled = MetaTensor(image.as_tensor()[..., order], meta=image.meta, affine=image.affine)
    logits = inferer(shuffled[None], network, pair["reference_image"], pair["reference_label"], pair["modality"])
    return logits[0].as_tensor()[..., np.argsort(order)].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_slices_and_labels_of_queries_change_nothing(method, datalist, tmp_path, tiny_network):
    network = tiny_network(2)
    (pair,) = pair_with_support(datalist, "case0:2", "spleen", tmp_path / "supports")
    first = segment(method, network, pair)
    np.testing.assert_array_equal(segment(method, network, pair, shuffle=True), first)
    poison = nib.Nifti1Image(np.full((40, 48, 4), 4, np.uint8), np.diag([-2.0, -2.0, 8.0, 1.0]))
    nib.save(poison, datalist.cases[1].label)
    (again,) = pair_with_support(datalist, "case0:2", "spleen", tmp_path / "supports")
    assert again == pair
    np.testing.assert_array_equal(segment(method, network, again), first)


def test_another_slice_of_the_support_gives_another_mask(datalist, tmp_path, tiny_network):
    network = tiny_network(2)
    pairs = [pair_with_support(datalist, f"case0:{k}", "spleen", tmp_path)[0] for k in (1, 2)]
    one, other = (segment(PanetInferer, network, pair) for pair in pairs)
    assert not np.array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_no_other_organ_of_the_support_is_looked_at(method, datalist, tmp_path, tiny_network):
    network = tiny_network(2)
    (pair,) = pair_with_support(datalist, "case0:2", "spleen", tmp_path / "one")
    first = segment(method, network, pair)
    image = nib.load(datalist.cases[0].label)
    label = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(label == 1, 0, label), image.affine), datalist.cases[0].label)
    (without,) = pair_with_support(datalist, "case0:2", "spleen", tmp_path / "two")
    assert torch.equal(torch.from_numpy(segment(method, network, without)), torch.from_numpy(first))


@pytest.mark.parametrize("method", [*METHODS, GfSamInferer, CopyReferenceInferer, LabelPropagationInferer])
def test_each_structure_is_served_by_its_own_middle_slice(method, tmp_path, tiny_network, caplog):
    """Two structures that no slice of the reference shows together: neither is lost."""
    case, target = write_case(tmp_path, 0), write_case(tmp_path, 1)
    label = np.zeros((40, 48, 4), np.uint8)
    label[4:16, 6:20, :2], label[22:34, 20:34, 3] = 1, 4
    nib.save(nib.Nifti1Image(label, np.diag([-2.0, -2.0, 8.0, 1.0])), case.label)
    names = {"liver": 1, **ORGAN}
    image = case_preprocessing(64)({"image": target.image, "modality": "MR"})["image"][None]
    of_each = {}
    for labels in (names, {"liver": 1}, ORGAN):
        inferer = method(labels, ReferenceLoader(case_preprocessing(64, masks="label"), labels), slice_match="middle")
        _, details = inferer.segment_case(image, tiny_network(2), [case.image], [case.label], "MR")
        of_each[tuple(labels)] = details.rows
    together = of_each[tuple(names)]
    assert {(row["label"], row["reference_slice"]) for row in together} == {("liver", "1"), ("spleen", "3")}
    assert {row["status"] for row in together} <= {"ok", "no_foreground"}
    assert "was not sought" not in caplog.text
    if method in (PanetInferer, LabelPropagationInferer):
        return  # structures compete there
    assert together[::2] == of_each["liver",]
    assert together[1::2] == of_each["spleen",]
