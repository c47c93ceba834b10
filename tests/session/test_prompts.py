"""Which learned prompts a run has, whether they fit its SAM, and who may be segmented with them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_ext.data.images import read_label
from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.errors import UserError
from monai_ext.evaluation.review import read_calibration
from monai_ext.files import sha256_of
from monai_ext.networks.sam import PromptableSam, build_compact
from monai_ext.session import bundle_beside, prompts

SMALL = {"trunk": "sam", "hidden": 16, "prompt_count": 4}


@pytest.fixture(scope="module")
def sam() -> PromptableSam:
    torch.manual_seed(0)
    return build_compact(image_size=64, stride=8, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=32).eval()


@pytest.fixture
def bundle(tmp_path, sam) -> Path:
    """A bundle with prompts for a SAM, learned from the livers of patient c."""
    models = tmp_path / "bundle" / "models"
    models.mkdir(parents=True)
    torch.save(sam.state_dict(), models / "sam.pt")
    net = prompts.build_prompts(sam, **SMALL, sampler="gaussian", seed=3)
    torch.save(net.state_dict(), models / "prompts.pt")
    options = {**SMALL, "sampler": "gaussian", "classes": ["liver"]}
    record = WeightRecord(
        name="prompts",
        variant="prompts",
        datasets=[TrainingData(dataset="Toy", patients=["c"], labels="dense", licence="none")],
        command="none",
        licence="none",
        sha256=sha256_of(models / "prompts.pt"),
        trained_as=prompts.prompts_trained_as(models / "sam.pt", options),
    )
    write_record(models / "prompts.pt", record)
    return tmp_path / "bundle"


@pytest.fixture
def datalist(tmp_path) -> Path:
    """Patients a to c with two visits each; liver on slices 1 to 3, spleen on slice 2."""
    cases = []
    for name in "abc":
        for visit in (0, 1):
            label = np.zeros((8, 6, 5), np.uint8)
            label[1:4, 1:4, 1:4], label[5:7, 2:4, 2] = 1, 4
            for what, array in (("image", label * 20.0), ("label", label)):
                path = tmp_path / f"{name}{visit}_{what}.nii.gz"
                nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([-2.0, -2, 6, 1])), path)
            files = {what: f"{name}{visit}_{what}.nii.gz" for what in ("image", "label")}
            cases.append({"case": f"{name}{visit}", "patient": name, "visit": visit, **files})
    path = tmp_path / "toy.json"
    told = {"dataset": "Toy", "modality": "MR", "labels": {"liver": 1, "spleen": 4}, "cases": cases}
    path.write_text(json.dumps(told))
    return path


def without(cases: DataList, patient: str) -> DataList:
    return cases.model_copy(update={"cases": [case for case in cases.cases if case.patient != patient]})


def test_prompts_are_found_by_path_by_name_and_by_default(bundle):
    path = bundle / "models" / "prompts.pt"
    for given in (None, "prompts", str(path)):
        assert prompts.find_prompts(given, bundle, bundle / "models" / "sam.pt") == path
    assert prompts.sam_of_prompts(None, bundle, "other") == "sam"
    assert prompts.sam_of_prompts("nowhere", bundle, "other") == "other"


def test_prompts_that_are_not_there_or_changed_are_refused(bundle):
    with pytest.raises(UserError, match="prompt_checkpoint nowhere does not exist"):
        prompts.check_prompts("nowhere", bundle)
    path = bundle / "models" / "prompts.pt"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="sha256"):
        prompts.check_prompts(None, bundle)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="no record that says which SAM"):
        prompts.check_prompts(None, bundle)


def test_another_sam_is_refused(bundle, tmp_path):
    (tmp_path / "other.pt").write_bytes(b"other")
    with pytest.raises(UserError, match="fit the SAM sam with sha256"):
        prompts.check_prompts(None, bundle, tmp_path / "other.pt")


def test_prompts_are_built_as_they_were_trained(bundle, sam):
    loaded = prompts.load_prompts(bundle / "models" / "prompts.pt", sam, "cpu")
    assert (loaded.sampler.name, loaded.prompts, loaded.mask_downsample) == ("gaussian", 4, "max")
    assert not loaded.training
    same = prompts.build_prompts(sam, **SMALL, sampler="gaussian", seed=3)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in same.state_dict().items())
    other = prompts.load_prompts(bundle / "models" / "prompts.pt", sam, "cpu", "area")
    assert other.mask_downsample == "area"
    assert not any(parameter.requires_grad for parameter in sam.parameters())


def test_several_prompts_of_one_sam_have_names(bundle, sam):
    weights, path = bundle / "models" / "sam.pt", bundle / "models" / "prompts.pt"
    (only,) = prompts.load_compared(None, path, bundle, weights, sam, "cpu")
    assert only == "prompts"
    both = prompts.load_compared({"a": "prompts", "b": str(path)}, path, bundle, weights, sam, "cpu")
    assert list(both) == ["a", "b"]
    for wrong, words in (([], "give names and files"), ({"a": "nowhere"}, "nowhere does not exist")):
        with pytest.raises(UserError, match=words):
            prompts.load_compared(wrong, path, bundle, weights, sam, "cpu")


def test_prompts_of_another_width_are_refused(bundle):
    wider = build_compact(image_size=64, stride=8, channels=(16, 16, 32, 48), blocks=(1, 1, 1), width=48).eval()
    with pytest.raises(UserError, match="learned prompts"):
        prompts.load_prompts(bundle / "models" / "prompts.pt", wider, "cpu")


def test_a_seed_starts_from_the_same_numbers_and_leaves_torch_s_own_alone(sam):
    state = torch.get_rng_state()
    one, same, other = (prompts.build_prompts(sam, **SMALL, seed=seed).to_mean.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def pair(bundle, datalist, tmp_path, cases=None, **options):
    given = {"reference_visit": None, "support": None, "organ": None, **options}
    return prompts.pair_references(
        cases or load_datalist(datalist),
        datalist,
        None,
        output_dir=tmp_path / "out",
        prompt_file=bundle / "models" / "prompts.pt",
        **given,
    )


def test_patients_and_structures_of_the_training_are_refused_with_and_without_a_support(bundle, datalist, tmp_path):
    support = {"support": "a0:2", "organ": "spleen"}
    for options in ({"labels": ["spleen"]}, support):
        with pytest.raises(UserError, match=r"is of patient 'c'.*--allow_trained true"):
            pair(bundle, datalist, tmp_path, **options)
        assert len(pair(bundle, datalist, tmp_path, **options, allow_trained=True)) > 1
    others = without(load_datalist(datalist), "c")
    for options in ({"labels": ["spleen", "liver"]}, {**support, "organ": "Liver"}):
        with pytest.raises(UserError, match=r"(?i)liver is among the classes.*--allow_trained true"):
            pair(bundle, datalist, tmp_path, others, **options)
    assert [one["case"] for one in pair(bundle, datalist, tmp_path, others, labels=["spleen"])] == ["a1", "b1"]
    assert [one["case"] for one in pair(bundle, datalist, tmp_path, others, **support)] == ["b0", "b1"]


def test_a_support_of_another_modality_serves_where_that_is_said(bundle, datalist, tmp_path):
    others = without(load_datalist(datalist), "c")
    ct = others.model_copy(update={"cases": [one.model_copy(update={"modality": "CT"}) for one in others.cases]})
    options = {"support": "a0:2", "organ": "spleen"}
    with pytest.raises(UserError, match="--allow_modality true"):
        pair(bundle, datalist, tmp_path, ct, **options)
    found = pair(bundle, datalist, tmp_path, ct, **options, allow_modality=True)
    assert [one["case"] for one in found] == ["b0", "b1"]


def test_a_support_may_be_annotated_by_points(bundle, datalist, tmp_path):
    others = without(load_datalist(datalist), "c")
    options = {"support": "a0", "organ": "spleen", "support_points": [[2, 1, 0]]}
    (mask,) = pair(bundle, datalist, tmp_path, others, **options)[0]["reference_label"]
    assert np.argwhere(read_label(mask)).tolist() == [[2, 1, 0]]
    with pytest.raises(UserError, match="name its case with --support"):
        pair(bundle, datalist, tmp_path, others, labels=["spleen"], support_box=[[0, 0, 0], [1, 1, 0]])


def test_a_support_needs_its_organ_and_the_reverse(bundle, datalist, tmp_path):
    with pytest.raises(UserError, match="--support needs --organ"):
        pair(bundle, datalist, tmp_path, support="a0")
    with pytest.raises(UserError, match="give --support with it"):
        pair(bundle, datalist, tmp_path, organ="spleen")


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (("matched", "a0:2", None), "matched"),
        ((None, None, None), None),
        ((None, "a0", None), None),
        ((None, "a0:2", None), "nearest"),
        ((None, "a0:2,3", None), "nearest"),
        ((None, "a0", [[2, 1, 0], [2, 1, 1]]), "nearest"),
    ],
)
def test_annotated_slices_serve_all_slices_of_a_target(given, chosen):
    assert prompts.choose_reference_slice(*given) == chosen


def test_a_support_s_slice_is_counted_along_the_axis_of_the_run(bundle, datalist, tmp_path):
    others = without(load_datalist(datalist), "c")
    for letter, axis in ((None, 2), ("A", 1), ("R", 0)):
        told = {"support": "a0:2", "organ": "liver", "slice_axis": letter, "allow_trained": True}
        (path,) = pair(bundle, datalist, tmp_path, others, **told)[0]["reference_label"]
        assert np.flatnonzero(read_label(path).any(axis=tuple({0, 1, 2} - {axis}))).tolist() == [2], letter


def test_the_record_repeats_what_the_sam_has_seen(bundle, tmp_path):
    (seen,) = prompts.seen_by(bundle / "models" / "prompts.pt")
    assert (seen["dataset"], seen["patients"]) == ("Toy", ["c"])
    assert prompts.seen_by(tmp_path / "unknown.pt") == []


@pytest.mark.parametrize(
    ("given", "words"), [(("q", 5, 2), "sampler 'q'"), (("t", 2, 2), "nu"), (("t", 5, 0), "K is 0")]
)
def test_impossible_draws_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        prompts.check_sampler(*given)


def test_the_server_of_the_shipped_prompts_loads_the_sam_that_they_fit():
    """MONAI Label loads ``model.pt`` into the network, whatever the config names."""
    models = Path(__file__).parents[2] / "bundles" / "prosam" / "models"
    record = json.loads((models / "prompts.json").read_text())
    assert sha256_of(models / "model.pt") == record["trained_as"]["sam_sha256"]
    assert sha256_of(models / "prompts.pt") == record["sha256"]


def test_the_calibration_that_is_shipped_is_of_the_prompts_that_are_shipped():
    bundles = Path(__file__).parents[2] / "bundles"
    made_by = read_calibration(bundles / "prosam" / "configs" / "review_prompts.json").made_by
    assert made_by["prompts"] == sha256_of(bundles / "prosam" / "models" / "prompts.pt")[:12]
    assert made_by["sam"] == sha256_of(bundles / "prosam" / "models" / "model.pt")[:12]


def test_weights_of_a_bundle_that_is_served_are_found_beside_the_bundle_itself(tmp_path):
    served = tmp_path / "app" / "model" / "prosam"
    for folder in (served, tmp_path / "bundles" / "prosam" / "models"):
        folder.mkdir(parents=True)
    (served / "models").symlink_to(tmp_path / "bundles" / "prosam" / "models")
    assert bundle_beside(served, "p2sam") == tmp_path / "bundles" / "p2sam"
    assert bundle_beside(tmp_path / "bundles" / "prosam", "p2sam") == tmp_path / "bundles" / "p2sam"
