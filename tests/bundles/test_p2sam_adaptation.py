"""SAM adapted with LoRA, and the paper's data sets, through MONAI's front door with a tiny ViT and made-up data."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from monai_ext.data.images import read_label
from monai_ext.data.indexing import __main__ as indexing
from monai_ext.data.phantoms.dicom import write_ct_series
from monai_ext.data.provenance import read_record
from monai_ext.engines.interactive import InteractiveIteration, trained_parameters
from monai_ext.errors import UserError
from monai_ext.evaluation.table import read_rows
from monai_ext.files import sha256_of
from monai_ext.networks import sam
from monai_ext.networks.lora import adapt, merged_state
from monai_ext.networks.sam import PromptableSam, build_sam
from monai_ext.prompts.prompt import Prompt
from phantoms.four_d_lung import write_phantom_4d_lung
from phantoms.seg import write_seg

BUNDLE = Path(__file__).parents[2] / "bundles" / "p2sam"
SIZE = 64
QUICK = {"epochs": 2, "epoch_length": 2, "batch_size": 2, "iterations": 2, "sam_variant": "vit_b", "device": "cpu"}


def tiny_vit(checkpoint: None = None) -> Sam:
    """Segment Anything with a ViT of two blocks for images of 64 pixels."""
    encoder = ImageEncoderViT(
        img_size=SIZE,
        embed_dim=24,
        depth=2,
        num_heads=2,
        out_chans=32,
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    prompts = PromptEncoder(embed_dim=32, image_embedding_size=(4, 4), input_image_size=(SIZE, SIZE), mask_in_chans=8)
    transformer = TwoWayTransformer(depth=1, embedding_dim=32, mlp_dim=32, num_heads=2)
    return Sam(encoder, prompts, MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=32))


@pytest.fixture(scope="module", autouse=True)
def _vit_b_is_tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam.sam_model_registry, "vit_b", tiny_vit)
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """Random weights of the tiny ViT, in a file as the official ones."""
    path = tmp_path_factory.mktemp("start") / "sam_vit_b.pth"
    torch.manual_seed(5)
    torch.save(tiny_vit().state_dict(), path)
    return path


def train(output_dir: Path, start: Path, *overlays: str, **options: Any) -> str:
    """Run a training; return what it printed."""
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", *overlays)]
    options = {"bundle_root": str(BUNDLE), "output_dir": str(output_dir), "checkpoint": str(start), **QUICK, **options}
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="train", **options)
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    return printed.getvalue()


# LoRA

LORA = {
    "adapt": "lora",
    "rank": 2,
    "learning_rate": 0.01,
    "warm_up": 0.0,
    "drop_path": 0.5,
    "export_precision": "float32",
}


@pytest.fixture(scope="module")
def lora(tmp_path_factory, start) -> tuple[Path, str]:
    """The output folder of a training with LoRA on the phantom patient, and what the training printed."""
    folder = tmp_path_factory.mktemp("lora")
    return folder, train(folder, start, **LORA)


def unmerged(folder: Path) -> PromptableSam:
    """The network of a training as its checkpoint has it, LoRA apart from the weights."""
    network = adapt(build_sam("vit_b"), "lora", rank=2)
    network.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["network"], strict=True)
    return network.eval()


@torch.no_grad()
def test_exported_file_is_a_plain_vit_b_that_does_what_was_trained(lora) -> None:
    trained, plain = unmerged(lora[0]), build_sam("vit_b", lora[0] / "model.pt")
    assert trained.image_encoder.blocks[0].attn.qkv.lora_b.abs().min() > 0
    for name, value in merged_state(trained).items():
        assert torch.equal(plain.state_dict()[name], value)
    image = 255 * torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    prompt = Prompt(torch.tensor([[20.0, 30.0]]), torch.tensor([1]))
    one, other = trained.encode(image), plain.encode(image)
    torch.testing.assert_close(other.features, one.features, atol=1e-6, rtol=0)
    torch.testing.assert_close(plain.decode(other, [prompt])[0], trained.decode(one, [prompt])[0], atol=1e-6, rtol=0)


def test_only_the_papers_parts_are_trained(lora, start) -> None:
    before, after = torch.load(start, weights_only=True), unmerged(lora[0]).state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    parts = {".".join(name.split(".")[:2]) for name in changed}
    assert not [name for name in changed if ".blocks." in name or "pos_embed" in name]
    assert {"image_encoder.patch_embed", "image_encoder.neck", "mask_decoder.transformer"} <= parts
    assert "prompt_encoder.point_embeddings" in parts
    assert not {"prompt_encoder.not_a_point_embed", "prompt_encoder.no_mask_embed"} & parts


def test_numbers_of_trained_parameters_are_printed_and_recorded(lora) -> None:
    record = read_record(lora[0] / "model.pt")
    assert record is not None
    assert record.trained_parameters is not None
    assert record.trained_parameters["LoRA"] == 2 * 2 * (3 * (24 + 24) + (24 + 24))  # blocks x rank x (q, k, v, proj)
    assert list(record.trained_parameters) == ["LoRA", "image encoder", "prompt encoder", "mask decoder"]
    total = sum(record.trained_parameters.values())
    assert total == sum(parameter.numel() for parameter in trained_parameters(unmerged(lora[0])))
    assert f"trained parameters: {total:,} (LoRA 768, image encoder " in lora[1]


def test_interrupted_training_ends_in_the_same_weights(lora, start, tmp_path, monkeypatch) -> None:
    iterate = InteractiveIteration.__call__

    def stop(self: InteractiveIteration, engine: Any, batch: Any) -> Any:
        if engine.state.iteration == 4:
            raise KeyboardInterrupt
        return iterate(self, engine, batch)

    monkeypatch.setattr(InteractiveIteration, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, start, **LORA)
    assert not (tmp_path / "model.pt").exists()
    monkeypatch.setattr(InteractiveIteration, "__call__", iterate)
    train(tmp_path, start, **LORA)
    assert sha256_of(tmp_path / "model.pt") == sha256_of(lora[0] / "model.pt")


DRIVER = """
import runpy, sys
sys.path[:0] = [{here!r}, {tests!r}]
from test_p2sam_adaptation import sam, tiny_vit
sam.sam_model_registry["vit_b"] = tiny_vit
runpy.run_module("monai.bundle", run_name="__main__")
"""

ALIKE: dict[str, Any] = {
    **LORA,
    **QUICK,
    "epochs": 2,
    "epoch_length": 4,
    "batch_size": 5,  # two slices for the first process, three for the second
    "drop_path": 0.0,
    "iterations": 1,
    "first_prompt": {"none": 1},  # nothing is drawn but the batches
    "augment": None,
    "regions": 1,
    "threads": 1,
    "learning_rate": 0.05,
    "optimizer#eps": 0.03,  # Adam's step would turn rounding in a gradient near 0 into a whole step
}


def test_two_processes_of_torchrun_train_lora_as_one(start, tmp_path) -> None:
    (tmp_path / "driver.py").write_text(
        DRIVER.format(here=str(Path(__file__).parent), tests=str(Path(__file__).parents[1]))
    )
    overlay = tmp_path / "alike.yaml"
    overlay.write_text(json.dumps(ALIKE))
    train(tmp_path / "alone", start, str(overlay.with_suffix("")), **ALIKE)
    names = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "train_multi_gpu")]
    options = {"bundle_root": BUNDLE, "output_dir": tmp_path / "two", "checkpoint": start}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "driver.py"), "run", "--config_file", str([*names, str(overlay)])]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    one, two = (unmerged(tmp_path / name).state_dict() for name in ("alone", "two"))
    assert max(float(value.abs().max()) for name, value in one.items() if name.endswith("lora_b")) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0, msg=name)


def test_a_training_of_another_kind_is_not_gone_on_with(lora, start) -> None:
    with pytest.raises(RuntimeError) as found:
        train(lora[0], start, **{**LORA, "adapt": "full"})
    assert isinstance(found.value.__cause__, UserError)
    assert "holds a training with another adapt (lora, now full)" in str(found.value.__cause__)


# The paper's data sets: small trees of the official layout, indexed as users do


def index(dataset: str, root: Path, **splits: int) -> Path:
    """Index a tree; the cards cut splits from complete sets alone, so these are given: numbers of cases, in order."""
    path = root.parent / "list.json"
    indexing.main([dataset, str(root), "-o", str(path)])
    content = json.loads(path.read_text())
    names = [name for name, number in splits.items() for _ in range(number)]
    for case, name in zip(content["cases"], names, strict=bool(splits)):
        case["split"] = name
    path.write_text(json.dumps(content))
    return path


def save_frame(root: Path, images: str, masks: str, name: str, number: int) -> None:
    """Write a frame of 40 x 30 pixels and the mask of a bright disc on it."""
    x, y = np.mgrid[:40, :30]
    disc = np.hypot(x - 18 - number % 5, y - 14) < 8
    values = np.random.default_rng(number).integers(0, 120, (40, 30, 3)) + 100 * disc[..., None]
    for folder, array in ((images, values.astype(np.uint8)), (masks, 255 * disc.astype(np.uint8))):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(np.swapaxes(array, 0, 1))).save(root / folder / name)


def polyps(root: Path) -> Path:
    for number in range(5):
        save_frame(root / "Kvasir-SEG", "images", "masks", f"cju{number}.png", number)
    return index("kvasir_seg", root / "Kvasir-SEG", train=3, val=1, test=1)


def tumours(root: Path) -> Path:
    shape, affine = (24, 20, 6), np.diag([-1.0, -1.5, 3.0, 1.0])
    x, y, z = np.indices(shape)
    mask = ((x - 9) / 5) ** 2 + ((y - 8) / 3) ** 2 + ((z - 3) / 2.5) ** 2 < 1
    values = np.select([x < 3, x > 20, mask], [-1000, 900, 590], np.where(y < 10, -910, -160))  # HU
    for number in range(3):
        study = root / "NSCLC-Radiomics" / f"LUNG1-{number + 1:03d}" / "01-01-2014-StudyID-NA-85095"
        files = write_ct_series(study / "0.0-NA-82046", values, affine, patient_id=f"LUNG1-{number + 1:03d}")
        write_seg(study / "300.0-Segmentation-9.554" / "1-1.dcm", files, {"GTV-1": mask})
    return index("nsclc_radiomics", root / "NSCLC-Radiomics", train=1, val=1, test=1)


@pytest.mark.parametrize("adapted", ["full", "lora"])
def test_kvasir_seg_trains_on_its_own_split(start, tmp_path, adapted: str) -> None:
    datalist = polyps(tmp_path)
    options = {"datalist": str(datalist), "epochs": 1, "adapt": adapted}
    train(tmp_path / "out", start, "kvasir_seg", **options)
    record = read_record(tmp_path / "out" / "kvasir_seg.pt")
    assert record is not None
    assert record.datasets[0].dataset == "Kvasir-SEG"
    assert record.datasets[0].patients == ["kvasir_seg_cju0", "kvasir_seg_cju1", "kvasir_seg_cju2"]
    assert record.notes == "choices were made on kvasir_seg_cju3"
    assert build_sam("vit_b", tmp_path / "out" / "kvasir_seg.pt").image_size == SIZE
    cut = sorted((tmp_path / "out" / "slices").glob("*_image.npy"))
    assert [path.name.split("_")[2] for path in cut] == ["cju0", "cju1", "cju2", "cju3"]
    assert np.load(cut[0]).shape == (1, 3, 48, 64)


def test_nsclc_radiomics_trains_on_slices_with_tumour_in_the_lung_window(start, tmp_path) -> None:
    train(tmp_path / "out", start, "nsclc_radiomics", datalist=str(tumours(tmp_path)), epochs=1)
    record = read_record(tmp_path / "out" / "nsclc_radiomics.pt")
    assert record is not None
    assert (record.datasets[0].patients, record.notes) == (["LUNG1-001"], "choices were made on LUNG1-002")
    assert record.licence == "CC BY-NC 3.0"
    images = np.load(next((tmp_path / "out" / "slices").glob("LUNG1-001_*_image.npy")))
    labels = np.load(next((tmp_path / "out" / "slices").glob("LUNG1-001_*_label.npy")))
    assert len(images) == 5  # of 6 slices
    assert labels.any((1, 2)).all()
    values, counts = np.unique(images, return_counts=True)
    assert set(values[np.argsort(counts)[-3:]].tolist()) == {0, 128, 255}  # -910 and below, -160, 590 and above


def test_schedules_are_the_papers() -> None:
    """P²SAM §4.1; beside that the overlays change options that train.yaml has."""
    base = ConfigParser.load_config_file(str(BUNDLE / "configs" / "train.yaml"))
    for name, epochs in (("kvasir_seg", 100), ("nsclc_radiomics", 36)):
        overlay = ConfigParser.load_config_file(str(BUNDLE / "configs" / f"{name}.yaml"))
        assert set(overlay) <= set(base)
        assert (overlay["epochs"], overlay["weight_decay"]) == (epochs, 0.05)
        assert (overlay["split"], overlay["validation_split"]) == ("train", "val")
        assert not {"batch_size", "learning_rate", "warm_up", "drop_path", "iterations", "first_prompt"} & set(overlay)


def values(output_dir: Path, metric: str) -> dict[str, float]:
    """The values of a metric by case, sorted; there is one structure."""
    rows = [row for row in read_rows(output_dir / "metrics.csv") if row.metric == metric]
    return {row.case: row.value for row in sorted(rows, key=lambda row: row.case) if row.value is not None}


@pytest.fixture
def frames(tmp_path) -> Path:
    """The first frames of CVC-ClinicDB's first two sequences."""
    for number in (*range(1, 6), *range(26, 30)):
        save_frame(tmp_path / "CVC-ClinicDB", "Original", "Ground Truth", f"{number}.tif", number)
    return index("cvc_clinicdb", tmp_path / "CVC-ClinicDB")


def test_cvc_clinicdb_scores_from_the_fourth_frame_on_by_sequence(frames, tmp_path, run_bundle) -> None:
    out = tmp_path / "out"
    run_bundle("p2sam", "inference", "evaluate", "cvc_clinicdb", datalist=str(frames), output_dir=str(out))
    scored = ["CVC_ClinicDB_frame004", "CVC_ClinicDB_frame005", "CVC_ClinicDB_frame029"]
    assert sorted(path.stem for path in (out / "masks").iterdir()) == scored
    dice = values(out, "dice")
    assert list(dice) == scored
    assert dice[scored[0]] + dice[scored[1]] != 2 * dice[scored[2]]
    summary = json.loads((out / "summary.json").read_text())
    by_sequence = ((dice[scored[0]] + dice[scored[1]]) / 2 + dice[scored[2]]) / 2
    assert summary["mean_of_levels"] == ["case", "patient"]
    assert summary["labels"]["polyp"]["dice"]["mean"] == pytest.approx(by_sequence)
    run = json.loads((out / "run.json").read_text())
    assert (run["config"]["n_pos"], run["config"]["n_neg"]) == ([1, 3], [1, 3])
    for path in (out / "masks").iterdir():
        assert set(np.unique(read_label(path))) <= {0, 255}


def test_cvc_clinicdb_runs_without_metrics(frames, tmp_path, run_bundle) -> None:
    out = tmp_path / "out"
    run_bundle("p2sam", "inference", "cvc_clinicdb", datalist=str(frames), output_dir=str(out), n_pos=[1, 1])
    assert len(list((out / "masks").iterdir())) == 3
    assert not (out / "metrics.csv").exists()


@pytest.fixture(scope="module")
def lungs(tmp_path_factory) -> Path:
    """A phantom 4D-Lung of three visits."""
    return index("4d_lung", write_phantom_4d_lung(tmp_path_factory.mktemp("lungs") / "4D-Lung", visits=3, gates=(0,)))


def test_4d_lung_means_over_visits_and_patients(lungs, tmp_path, run_bundle) -> None:
    run_bundle("p2sam", "inference", "evaluate", "4d_lung", datalist=str(lungs), output_dir=str(tmp_path))
    later = sorted(json.loads(lungs.read_text())["cases"], key=lambda case: case["visit"])[1:]
    assert sorted(path.name.split(".")[0] for path in (tmp_path / "masks").iterdir()) == [c["case"] for c in later]
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["config"]["intensity"] == {"window": [-910, 590]}
    assert (run["config"]["n_pos"], run["config"]["n_neg"]) == ([1, 3], [1, 1])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["mean_of_levels"] == ["case", "visit", "patient"]
    of_visits = values(tmp_path, "dice_slice_mean")
    assert list(of_visits) == [case["case"] for case in later]
    mean = sum(of_visits.values()) / len(of_visits)  # of one patient
    assert summary["labels"]["tumour"]["dice_slice_mean"]["mean"] == pytest.approx(mean)


def test_4d_lung_needs_no_evaluation(lungs, tmp_path, load_bundle) -> None:
    workflow = load_bundle("p2sam", "inference", "4d_lung", datalist=str(lungs), output_dir=str(tmp_path))
    assert len(workflow.parser.get_parsed_content("pairs")) == 2
