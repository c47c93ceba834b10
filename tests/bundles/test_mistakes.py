"""A mistake that needs neither weights nor images is answered before a network is built and an image read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from forked import BundleCommand
from monai_ext import made
from monai_ext.errors import find_user_error

BUNDLES = Path(__file__).parents[2] / "bundles"
SLOW = (
    "monai_ext.networks.sam.build_sam",
    "monai_ext.engines.scribble_training.build_sam",
    "monai_ext.networks.sam.fetch_checkpoint",
    "monai_ext.session.weights.fetch_checkpoint",
    "monai_ext.engines.scribble_training.store_scribbles",
    "monai_ext.engines.training.store_slices",
    "monai_ext.session.preflight.check_pairs",
    "monai_ext.session.preflight.examine",
)
"""What takes long: networks, downloads, slices, headers."""

SAM_SP = {"sam_variant": "compact", "checkpoint": "compact_chaos", "simulated": True}
ADAPT = {"sam_variant": "compact", "drop_path": 0}


@pytest.fixture
def start(patient, write_list, tmp_path, monkeypatch) -> Iterator[Callable[..., str]]:
    """(bundle, configs, options) -> the sentence that ends the run; nothing slow has begun and nothing is left."""

    def slow(name: str) -> Callable[..., None]:
        def begin(*args: Any, **options: Any) -> None:
            raise AssertionError(f"{name} has begun")

        return begin

    def begin(bundle: str, *configs: str, **options: Any) -> str:
        for name in SLOW:  # a module that is first imported below would keep what others have replaced
            import_module(name.rpartition(".")[0])
        for name in SLOW:
            monkeypatch.setattr(name, slow(name))
        files = [str(BUNDLES / bundle / "configs" / f"{name}.yaml") for name in configs]
        given = {"bundle_root": str(BUNDLES / bundle), "output_dir": str(tmp_path / "new" / "out"), **options}
        given = {"datalist": write_list(patient), "device": "cpu", **given}
        before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
        workflow = ConfigWorkflow(files, logging_file=False, **given)
        with pytest.raises((ValueError, RuntimeError)) as caught:
            workflow.initialize()
        error = find_user_error(caught.value)
        assert error is not None, caught.value
        made.remove_made()
        assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before
        return str(error)

    made.keep_made()
    yield begin
    made.keep_made()


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ("p2sam inference", {"mode": "fast"}, "mode 'fast'"),
        ("p2sam inference", {"distance": "x"}, "distance 'x'"),
        ("p2sam inference", {"negatives": "x"}, "negatives 'x'"),
        ("p2sam inference", {"attention": "x"}, "attention 'x'"),
        ("p2sam inference", {"previous_box": "x"}, "previous_box 'x'"),
        ("p2sam inference", {"n_range": "x"}, "n_range 'x'"),
        ("p2sam inference", {"n_range": ["x"]}, "n_range"),
        ("p2sam inference", {"n_pos": [3, 1]}, "n_pos is [3, 1]"),
        ("p2sam inference", {"slice_match": "x"}, "slice_match 'x'"),
        ("p2sam inference", {"intensity": "x"}, "intensity 'x'"),
        ("p2sam inference", {"slice_axis": "X"}, "slice_axis 'X'"),
        ("p2sam inference", {"precision": "fp16"}, "precision 'fp16'"),
        ("p2sam inference", {"device": "gpu"}, "--device gpu"),
        ("p2sam inference", {"shard": "4/4"}, "--shard 4/4"),
        ("p2sam inference", {"seed": -1}, "--seed is -1"),
        ("p2sam inference", {"threads": 0}, "--threads is 0"),
        ("p2sam inference", {"sam_variant": "vit_x"}, "sam_variant 'vit_x'"),
        ("p2sam inference", {"checkpoint": "nowhere"}, "checkpoint nowhere does not exist"),
        ("p2sam inference", {"labels": ["rim"]}, "label 'rim'"),
        ("p2sam inference", {"split": "x"}, "split 'x'"),
        ("p2sam inference", {"reference_visit": 5}, "no visit 5"),
        ("p2sam inference", {"datalist": "no.json"}, "no such data list"),
        ("p2sam inference", {"data_root": "/nowhere"}, "--data_root"),
        ("p2sam inference", {"sam_variant": "vit_h", "datalist": "no.json"}, "no such data list"),
        ("p2sam inference evaluate", {"mean_of": "visti"}, "--mean_of visti"),
        ("p2sam inference evaluate", {"nsd_tolerance_mm": -1}, "nsd_tolerance_mm -1"),
        ("p2sam inference finetune_prior", {"tuned": "x"}, "tuned 'x'"),
        ("p2sam inference matcher", {"matcher_centres": 0}, "matcher_centres"),
        ("p2sam train", {**ADAPT, "adapt": "x"}, "adapt 'x'"),
        ("p2sam train", {**ADAPT, "adapt": "lora"}, "--adapt lora needs a ViT"),
        ("p2sam train", {"sam_variant": "compact"}, "drop_path 0.1 needs a ViT"),
        ("p2sam train", {"adapt": "lora", "rank": 0}, "--rank 0"),
        ("p2sam train", {**ADAPT, "epochs": 0}, "--epochs is 0"),
        ("p2sam train", {**ADAPT, "batch_size": 0}, "--batch_size is 0"),
        ("p2sam train", {**ADAPT, "precision": "x"}, "precision 'x'"),
        ("p2sam train", {**ADAPT, "export_precision": "x"}, "export_precision 'x'"),
        ("p2sam train", {**ADAPT, "phantom_share": 0.9}, "--phantom_share and --region_share"),
        ("p2sam train", {**ADAPT, "validation_patients": ["x"]}, "validation patient 'x'"),
        ("p2sam train", {**ADAPT, "labels": ["rim"]}, "label 'rim'"),
        ("p2sam train", {"datalist": "no.json"}, "no such data list"),
        ("sam_sp inference", {"branch": "x"}, "branch 'x'"),
        ("sam_sp inference", {"image_size": 40}, "--image_size is 40"),
        ("sam_sp inference", {"checkpoint": "nowhere"}, "checkpoint nowhere does not exist"),
        ("sam_sp inference", {"datalist": None}, "give --datalist"),
        ("sam_sp inference", {"labels": ["rim"]}, "label 'rim'"),
        ("sam_sp train", {**SAM_SP, "checkpoint": None}, "no weights are named: give --checkpoint"),
        ("sam_sp train", {**SAM_SP, "checkpoint": None, "datalist": None}, "no weights are named: give --checkpoint"),
        ("sam_sp train", {**SAM_SP, "checkpoint": "nowhere"}, "checkpoint nowhere does not exist"),
        ("sam_sp train", {**SAM_SP, "sam_variant": "vit_x"}, "sam_variant 'vit_x'"),
        ("sam_sp train", {**SAM_SP, "variant": "x"}, "variant 'x'"),
        ("sam_sp train", {**SAM_SP, "architecture": "x"}, "architecture 'x'"),
        ("sam_sp train", {**SAM_SP, "sampling": "x"}, "sampling 'x'"),
        ("sam_sp train", {**SAM_SP, "negatives": "x"}, "negatives 'x'"),
        ("sam_sp train", {**SAM_SP, "paint_order": ["x"]}, "names 'x'"),
        ("sam_sp train", {**SAM_SP, "precision": "x"}, "precision 'x'"),
        ("sam_sp train", {**SAM_SP, "keep": 2}, "--keep 2"),
        ("sam_sp train", {**SAM_SP, "rounds": -1}, "--rounds is -1"),
        ("sam_sp train", {**SAM_SP, "iterations": 0}, "--iterations"),
        ("sam_sp train", {**SAM_SP, "image_size": 40}, "--image_size is 40"),
        ("sam_sp train", {**SAM_SP, "loss_weights": [1]}, "--loss_weights is [1]"),
        ("sam_sp train", {**SAM_SP, "batch_size": 0}, "--batch_size is 0"),
        ("sam_sp train", {**SAM_SP, "simulated": False}, "no case with a scribble"),
    ],
)
def test_it_is_answered_before_anything_slow_and_leaves_nothing(start, config, options, words):
    bundle, *configs = config.split()
    assert words in start(bundle, *configs, **options)


def test_the_phantom_is_not_left_behind(start):
    assert "label 'rim'" in start("p2sam", "inference", datalist=None, labels=["rim"])


def test_options_are_answered_before_the_phantom_is_drawn(start, monkeypatch):
    monkeypatch.setattr("monai_ext.session.cases.write_phantom_patient", lambda folder: 1 / 0)
    assert "mode 'fast'" in start("p2sam", "inference", datalist=None, mode="fast")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--mode", "fast"], "error: mode 'fast' is unknown: choose one of paper, official."),
        (["--inferer#n_poss", "[1,1]"], "error: unknown option --inferer#n_poss, did you mean --inferer#n_pos?"),
        (["--seed", "1.5"], "error: --seed is 1.5: a whole number is expected, such as 0."),
    ],
)
def test_on_the_command_line_it_is_the_last_line(tmp_path, words, sentence):
    code, _, err = command(tmp_path, *words)
    assert code == 1
    assert err.splitlines()[-1] == sentence
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_help_beside_a_config_file_ends_well(tmp_path):
    code, out, _ = command(tmp_path, "--help")
    assert code == 0
    assert "--previous_box null" in out
    assert list(tmp_path.iterdir()) == []


def command(folder: Path, *words: str) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error."""
    config, root = BUNDLES / "p2sam" / "configs" / "inference.yaml", str(BUNDLES / "p2sam")
    given = ["--config_file", str([str(config)]), "--bundle_root", root, "--output_dir", "out", *words]
    process = BundleCommand(["run", *given], cwd=folder)
    out, err = process.communicate()
    return process.returncode, out, err


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_nan_in_weights_ends_a_run_before_its_first_case(run_bundle, tiny_weights, patient, write_list, tmp_path):
    state = torch.load(tiny_weights, weights_only=True)
    state["mask_decoder.iou_token.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    given = {"datalist": write_list(patient), "checkpoint": str(tmp_path / "nan.pt")}
    with pytest.raises(RuntimeError) as caught:
        run_bundle("p2sam", "inference", output_dir=str(tmp_path / "out"), **given)
    said = str(find_user_error(caught.value))
    assert said.startswith(f"checkpoint {tmp_path / 'nan.pt'} holds NaN or infinite numbers")
    assert "mask_decoder.iou_token.weight" in said
    assert not (tmp_path / "out" / "masks").exists()
