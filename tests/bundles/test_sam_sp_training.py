"""The training of the SAM-SP bundle through MONAI's own front door: rounds, kills, variants and overlays."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from forked import BundleCommand
from monai_ext.data.provenance import read_record
from monai_ext.engines import rounds
from monai_ext.errors import UserError
from monai_ext.files import sha256_of
from monai_ext.networks.dual_branch_unet import build_segmentor
from monai_ext.networks.sam import build_sam

BUNDLE = Path(__file__).parents[2] / "bundles" / "sam_sp"
SMALL: dict[str, Any] = {
    **{"sam_variant": "compact", "simulated": True, "slice_size": 32, "image_size": 32, "device": "cpu"},
    **{"iterations": 16, "epoch_length": 4, "batch_size": 3, "sam_epochs": 3, "sam_batch_size": 2},
    **{"sam_learning_rate": 1e-3, "early_stop": False, "rounds": 2},
}


@pytest.fixture
def options(tiny_weights, tiny_options, patient, write_list) -> dict[str, Any]:
    """Options of a training that takes seconds, on two visits with simulated scribbles."""
    sizes = {key.replace("network_def", "sam_def"): v for key, v in tiny_options.items() if key[:11] == "network_def"}
    for case, fold in zip(patient["cases"], (0, 1), strict=True):
        case.update(patient=case["case"], fold=fold, visit=0)
    return {**SMALL, **sizes, "checkpoint": str(tiny_weights), "datalist": write_list(patient)}


@pytest.fixture
def train(options, tmp_path) -> Callable[..., Path]:
    """(folder, overlays, options) -> the output folder of a finished training."""

    def run(folder: str, *overlays: str, **changes: Any) -> Path:
        files = [str(BUNDLE / "configs" / f"{n}.yaml") for n in ("train", *overlays)]
        given = {"bundle_root": str(BUNDLE), **options, "output_dir": str(tmp_path / folder), **changes}
        given = {key: value for key, value in given.items() if value is not ...}
        workflow = ConfigWorkflow(files, logging_file=False, workflow_type="train", **given)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return tmp_path / folder

    return run


@contextmanager
def refused(sentence: str) -> Iterator[None]:
    """What a user sees: MONAI wraps errors of the parts it builds, and our hook shows the sentence within."""
    with pytest.raises((UserError, RuntimeError)) as caught:
        yield
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    assert error is not None
    assert re.search(sentence, str(error))


def results(folder: Path) -> dict[str, str]:
    """The checksums of all weights and pseudo-labels of a training."""
    found = [*folder.glob("round_*/*.pt"), *folder.glob("round_*/pseudo_labels/*"), *folder.glob("model.*")]
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(found)}


def start(options: dict[str, Any], folder: Path) -> BundleCommand:
    words = ["--config_file", str(BUNDLE / "configs" / "train.yaml"), "--bundle_root", str(BUNDLE)]
    for key, value in {**options, "output_dir": folder, "threads": 1}.items():
        words += [f"--{key}", str(value)]
    return BundleCommand(["run", *words], join=True)


def kill_when(process: BundleCommand, path: Path) -> None:
    """kill -9 as soon as a file is there."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    printed, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, printed


@pytest.fixture
def patience(options) -> None:
    """Make SAM's tuning long enough to be killed inside."""
    options.update(sam_epochs=5)


def test_a_run_killed_at_and_inside_a_stage_ends_with_the_same_bytes(patience, train, options, tmp_path) -> None:
    whole, killed = train("whole"), tmp_path / "killed"
    kill_when(start(options, killed), killed / "round_0" / "segmentor.pt")  # between two stages
    assert not (killed / "round_0" / "sam.pt").exists()
    kill_when(start(options, killed), killed / "round_1" / "sam" / "checkpoint.pt")  # inside SAM's second tuning
    assert not (killed / "round_1" / "sam.pt").exists()
    before = {path: path.stat().st_mtime_ns for path in killed.glob("round_*/*.pt")}
    train("killed")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    mine, theirs = results(killed), results(whole)
    assert mine == theirs
    names = [path.name for path in sorted(whole.glob("round_*/*.pt"))]
    assert names == ["sam.pt", "segmentor.pt"] * 2 + ["segmentor.pt"]
    assert len({mine[f"round_{k}/sam.pt"] for k in (0, 1)}) == 2
    assert mine["model.pt"] == mine["round_2/segmentor.pt"]


def test_weights_are_plain_and_say_where_they_come_from(train, options) -> None:
    options.update(rounds=1)
    folder = train("out", name="hearts", licence="CC0")
    sizes = {key.partition("#")[2]: value for key, value in options.items() if key.startswith("sam_def#")}
    build_sam("compact", folder / "round_0" / "sam.pt", **sizes)
    build_segmentor(3, checkpoint=folder / "model.pt")
    record, tuned = (read_record(folder / name) for name in ("model.pt", "round_0/sam.pt"))
    assert record
    assert tuned
    assert record.sha256 == sha256_of(folder / "model.pt")
    assert (record.name, record.variant, record.licence) == ("hearts", "sam_sp", "CC0")
    assert [(d.dataset, d.patients, d.labels) for d in record.datasets] == [("small", ["visit0", "visit1"], "scribble")]
    assert "simulated" in record.notes
    assert (tuned.name, tuned.variant) == ("sam", "compact")
    started = torch.load(options["checkpoint"], weights_only=True)
    ended = torch.load(folder / "round_0" / "sam.pt", weights_only=True)
    changed = {name.split(".")[0] for name, value in ended.items() if not torch.equal(value, started[name])}
    assert changed == {"mask_decoder"}


def test_inference_repeats_what_the_record_says(train, options, tmp_path) -> None:
    folder = train("trained", rounds=0)
    assert read_record(folder / "model.pt").trained_as == {
        **{"labels": ["disc", "ring"], "use_gpm": False, "slice_size": 32, "image_size": 32},
        **{"intensity": None, "slice_axis": None},
    }
    files = [str(BUNDLE / "configs" / "inference.yaml")]
    given = {"bundle_root": str(BUNDLE), "checkpoint": str(folder / "model.pt"), "output_dir": str(tmp_path / "masks")}
    workflow = ConfigWorkflow(
        files, logging_file=False, workflow_type="infer", datalist=options["datalist"], device="cpu", **given
    )
    workflow.initialize()
    assert workflow.parser.get_parsed_content("inferer").image_size == 32
    workflow.run()
    mask = nib.load(tmp_path / "masks" / "masks" / "visit1.nii.gz")
    assert np.allclose(mask.affine, nib.load(Path(options["datalist"]).parent / "image1.nii.gz").affine)


def test_each_round_leaves_what_one_looks_at(train) -> None:
    folder = train("out", rounds=0) / "round_0"
    for case in ("visit0", "visit1"):
        assert (folder / "overlays" / f"{case}.png").stat().st_size > 1000
        image = nib.load(folder / "pseudo_labels" / f"{case}.nii.gz")
        assert image.shape == (27, 32, 3)  # the input frame: rows, columns, slices
        assert set(np.unique(image.dataobj)) <= {0, 1, 2}
    assert (folder / "pseudo_label_dice.csv").read_text().count("visit0,") == 2
    assert 0 <= json.loads((folder / "agreement.json").read_text())["agreement"] <= 1


def test_rounds_end_when_the_agreement_does_not_rise(train, capsys) -> None:
    folder = train(
        "out", early_stop=True, sam_learning_rate=0.0, iterations=16
    )  # SAM stays as it is, so it cannot rise
    assert "round 0 is kept" in capsys.readouterr().out
    assert not (folder / "round_1" / "segmentor.pt").exists()
    assert sha256_of(folder / "model.pt") == sha256_of(folder / "round_0" / "segmentor.pt")


def test_a_segmentor_that_finds_nothing_ends_the_rounds_not_the_run(train, capsys, monkeypatch) -> None:
    monkeypatch.setattr(rounds, "segment_slices", lambda network, planes, *_: np.zeros(planes.shape, np.uint8))
    folder = train("out", iterations=1)
    assert "round 0: the segmentor found no structure" in capsys.readouterr().out
    assert (folder / "model.pt").exists()
    assert not (folder / "round_0" / "sam.pt").exists()


@pytest.mark.parametrize(
    ("overlay", "changes"),
    [
        ("pce", {"checkpoint": None}),
        ("dmpls", {"checkpoint": None}),
        ("full", {"checkpoint": None}),
        ("sam_only", {"rounds": ...}),
    ],
)
def test_variants_run(train, overlay: str, changes: dict[str, Any]) -> None:
    folder = train("out", overlay, iterations=2, **changes)
    record = read_record(folder / "model.pt")
    assert record
    plain = overlay in ("pce", "dmpls", "full")
    build_segmentor(3, "plain" if plain else "sam_sp", folder / "model.pt")
    assert record.datasets[0].labels == ("dense" if overlay == "full" else "scribble")
    assert (folder / "round_0" / "pseudo_labels").exists() is not plain
    assert not (folder / "round_0" / "sam.pt").exists()


def test_a_training_that_diverges_writes_no_weights(train, tmp_path) -> None:
    with pytest.raises(RuntimeError) as failed:  # MONAI's, around ours
        train("diverged", "pce", learning_rate=1e30)
    assert re.search(r"the training has diverged, .* lower --learning_rate", str(failed.value.__cause__))
    assert not list((tmp_path / "diverged").rglob("segmentor.pt")) + list((tmp_path / "diverged").glob("model*"))


def test_sam_sp_star_takes_a_sam_tuned_elsewhere_alone(train, options, patient, write_list) -> None:
    kept = {"rounds": ..., "sam_variant": "compact"}  # the overlay's rounds
    with refused("on no scribbles"):
        train("untuned", "sam_sp_star", **kept)
    tuned = train("first", rounds=1) / "round_0" / "sam.pt"
    with refused("on scribbles of small itself"):
        train("same", "sam_sp_star", checkpoint=str(tuned), **kept)
    patient["dataset"] = "other"
    folder = train("star", "sam_sp_star", checkpoint=str(tuned), datalist=write_list(patient), iterations=2, **kept)
    record = read_record(folder / "model.pt")
    assert record
    assert [data.dataset for data in record.datasets] == ["other", "small"]


@pytest.mark.parametrize("overlay", ["pce", "dmpls"])
def test_controls_have_the_network_of_sam_sp(train, overlay: str) -> None:
    folder = train("out", overlay, "sam_sp_network", iterations=1, checkpoint=None)
    build_segmentor(3, "sam_sp", folder / "model.pt")
    assert read_record(folder / "model.pt").notes.startswith(f"variant {overlay}")


def test_scribbles_that_are_not_trained_on_choose_iteration_and_round(train, capsys, monkeypatch) -> None:
    monkeypatch.setattr(rounds, "read_score", lambda folder: {"round_0": 0.5, "round_1": 0.4}[folder.parent.name])
    monkeypatch.setattr(rounds, "segment_slices", lambda network, planes, *_: np.ones(planes.shape, np.uint8))
    folder = train("out", validation_patients=["visit1"], early_stop=True, iterations=8)
    assert "round 0 is kept" in capsys.readouterr().out
    assert [path.name for path in (folder / "round_0" / "pseudo_labels").iterdir()] == ["visit0.nii.gz"]
    told = json.loads((folder / "round_0" / "segmentor" / "held_out.json").read_text())
    assert told["score"] == max(told["scores"].values())
    assert list(told["scores"]) == ["4", "8"]
    assert sha256_of(folder / "model.pt") == sha256_of(folder / "round_0" / "segmentor.pt")
    record = read_record(folder / "model.pt")
    assert record.datasets[0].patients == ["visit0", "visit1"]  # no test may use either
    assert "scribbles of visit1 were not trained on" in record.notes
    with refused("'visit9' has no scribbles"):
        train("other", validation_patients=["visit9"])


def test_a_fold_is_left_out_of_its_training(train) -> None:
    folder = train("out", "pce", iterations=1, fold=1, checkpoint=None)
    record = read_record(folder / "model.pt")
    assert record
    assert record.datasets[0].patients == ["visit0"]


def test_a_folder_of_another_training_is_refused(train) -> None:
    train("out", "pce", iterations=1, checkpoint=None)
    with refused("another batch_size \\(3, now 2\\)"):
        train("out", "pce", iterations=1, checkpoint=None, batch_size=2)


@pytest.mark.parametrize("overlay", ["chaos_t1", "chaos_t2"])
def test_chaos_overlays_simulate_scribbles(train, overlay: str) -> None:
    folder = train("out", overlay, iterations=2, rounds=0, simulated=...)
    scribble = np.load(next(folder.glob("slices/visit0_*_scribble.npy")))
    label = np.load(next(folder.glob("slices/visit0_*_label.npy")))
    drawn = scribble != 255
    assert 0 < drawn.mean() < 0.5
    assert (scribble[drawn] == label[drawn]).all()


@pytest.mark.parametrize("overlay", ["acdc", "mscmr"])
def test_overlays_of_drawn_scribbles_run(train, patient, write_list, tmp_path, overlay: str) -> None:
    patient |= {"labels": {"RV": 1, "MYO": 2, "LV": 3}, "ignore": 4}
    for case in patient["cases"]:
        case["split"] = "train"
        label = nib.load(tmp_path / case["label"])
        array = np.asarray(label.dataobj).copy()
        array[::2] = 4
        nib.save(nib.Nifti1Image(array, label.affine), tmp_path / f"{case['case']}_scribble.nii.gz")
        case["scribble"] = f"{case['case']}_scribble.nii.gz"
    changes = {"simulated": False, "iterations": 2, "rounds": 0, "negatives": "one_class"}
    assert (train("out", overlay, datalist=write_list(patient), **changes) / "model.pt").exists()


OVERLAYS = [p for p in sorted((BUNDLE / "configs").glob("*.yaml")) if "on train.yaml" in p.read_text().splitlines()[0]]


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_overlays_of_the_training_change_known_options_alone(path: Path) -> None:
    base, overlay = (ConfigParser.load_config_file(str(p)) for p in (BUNDLE / "configs" / "train.yaml", path))
    assert {key.lstrip("+").partition("::")[0] for key in overlay} <= set(base)


def test_rounds_run_with_a_file_in_the_form_of_the_official_vit_b(train, patient, write_list, tmp_path) -> None:
    torch.manual_seed(0)
    torch.save(build_sam("vit_b").state_dict(), tmp_path / "sam_vit_b.pth")
    case = patient["cases"][0]
    for key in ("image", "label"):  # one slice: each takes the encoder seconds
        volume = nib.load(tmp_path / case[key])
        nib.save(volume.slicer[:, :, :1], tmp_path / case[key])
    write_list({**patient, "cases": [case]})
    sizes = {f"sam_def#{size}": ... for size in ("image_size", "stride", "channels", "blocks", "width")}
    changes = {"sam_variant": "vit_b", "checkpoint": str(tmp_path / "sam_vit_b.pth"), "rounds": 1, "sam_epochs": 1}
    out = train("vit_b", **sizes, **changes)
    start, tuned = (
        torch.load(path, weights_only=True) for path in (tmp_path / "sam_vit_b.pth", out / "round_0" / "sam.pt")
    )
    moved = {name.split(".")[0] for name in start if not torch.equal(start[name], tuned[name])}
    assert moved == {"mask_decoder"}
    assert (out / "round_1" / "segmentor.pt").is_file()


def test_a_finished_training_is_refused_to_other_data(train, options, patient, write_list, tmp_path) -> None:
    """The weights would be old, and a new record would name what they have not seen, or not what they have."""
    folder = train("out", rounds=0)
    before = {path: path.read_bytes() for path in [*folder.glob("model.*"), folder / "settings.json"]}

    def still_refused(sentence: str) -> None:
        with refused(sentence):
            train("out", rounds=0)
        assert {path: path.read_bytes() for path in before} == before

    lost = patient["cases"].pop(0)
    write_list(patient)
    still_refused("that had case visit0 in its train cases")
    patient["cases"].insert(0, lost)
    patient["labels"] = {"disc": 2, "ring": 1}
    write_list(patient)
    still_refused("another labels of the data list")
    patient["labels"] = {"disc": 1, "ring": 2}
    write_list(patient)
    label = nib.load(tmp_path / "label1.nii.gz")
    corrected = np.asarray(label.dataobj).copy()
    corrected[:2] = 1
    nib.save(nib.Nifti1Image(corrected, label.affine), tmp_path / "label1.nii.gz")
    still_refused("case visit1 had another label")
