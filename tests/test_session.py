from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.engines.evaluator import Evaluator
from monai.utils import set_determinism

from monai_ext import processes, session
from monai_ext.data.manifest import Case, DataList
from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.errors import UserError
from monai_ext.files import sha256_of

MONAI = "/site-packages/monai/bundle/__main__.py"
CONFIG = """
seed: 0
n_pos: [1, 3]
output_dir: out
allow_overlap: false
evaluator: {_target_: SupervisedEvaluator, handlers: [{_target_: A, output_dir: x}]}
"""


@pytest.fixture
def config(tmp_path) -> str:
    (tmp_path / "inference.yaml").write_text(CONFIG)
    return str(tmp_path / "inference.yaml")


# ------------------------------------------------------------------------------------------------ command lines


@pytest.mark.parametrize(
    "words",
    [
        ["--seed", "3"],
        ["--seed=3"],
        ["-seed", "3"],
        ["--n_pos", "[1,2]"],
        ["--n-pos", "[1,2]"],
        ["--output-dir=a=b"],
        ["--evaluator#amp", "true"],  # not in the config, but goes to the component
        ["--evaluator::amp=true"],
        ["--evaluator#handlers#0#output_dir", "y"],
        ["--evaluator::handlers::0::output_dir", "y"],
        ["--allow_overlap"],
        ["--noallow_overlap"],
        ["--run_id", "run", "--logging_file", "logging.conf", "--workflow_type", "infer"],
        ["run", "--seed", "-3"],
    ],
)
def test_declared_options_and_monais_own_pass(config, words):
    session.check_options([MONAI, "run", "--config_file", config, *words])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sead", "3"], "unknown option --sead, did you mean --seed?"),
        (["--sead=3"], "unknown option --sead, did you mean --seed?"),
        (["-sead", "3"], "unknown option --sead, did you mean --seed?"),
        (["--output-dri", "x"], "unknown option --output_dri, did you mean --output_dir?"),
        (["--confg_file", "x"], "unknown option --confg_file, did you mean --config_file?"),
        (["--seed", "3", "--n_poss", "[1,2]"], "unknown option --n_poss, did you mean --n_pos?"),
        (["--verbose"], "unknown option --verbose, see the block of options"),
        (["--zzz#qqq", "1"], "unknown option --zzz#qqq, see the block of options"),
        (["--seed#qqq", "1"], "unknown option --seed#qqq, did you mean --seed?"),
        (["--n_pos#5", "1"], "unknown option --n_pos#5, did you mean --n_pos?"),
    ],
)
def test_unknown_options_are_refused_with_the_nearest(config, words, sentence):
    with pytest.raises(UserError) as error:
        session.check_options([MONAI, "run", "--config_file", config, *words])
    assert str(error.value).startswith(sentence)


def test_options_of_an_overlay_are_known(config, tmp_path):
    (tmp_path / "overlay.yaml").write_text("nsd_tolerance_mm: 2.0\n+evaluator::handlers:\n  - {_target_: B}\n")
    files = f"['{config}','{tmp_path / 'overlay.yaml'}']"
    session.check_options([MONAI, "run", "--config_file", files, "--nsd_tolerance_mm", "1"])
    session.check_options([MONAI, "run", "--config_file", files, "--evaluator#handlers#1#_target_", "C"])
    with pytest.raises(UserError, match="--nsd_tolerance, did you mean --nsd_tolerance_mm"):
        session.check_options([MONAI, "run", "--config_file", files, "--nsd_tolerance", "1"])


def test_options_of_an_args_file_are_checked_too(config, tmp_path):
    args = tmp_path / "args.json"
    args.write_text(json.dumps({"config_file": config, "seed": 1}))
    session.check_options([MONAI, "run", "--args_file", str(args), "--n_pos", "[1,1]"])
    with pytest.raises(UserError, match="unknown option --sead"):
        session.check_options([MONAI, "run", "--args_file", str(args), "--sead", "1"])
    args.write_text(json.dumps({"config_file": config, "n_poss": 1}))
    with pytest.raises(UserError, match="unknown option --n_poss"):
        session.check_options([MONAI, "run", f"--args_file={args}"])


def test_run_workflow_has_arguments_of_its_own(config):
    words = ["--workflow_name", "ConfigWorkflow", "--workflow_type", "infer"]
    session.check_options([MONAI, "run_workflow", "--config_file", config, *words])
    with pytest.raises(UserError, match="--sead"):
        session.check_options([MONAI, "run_workflow", "--config_file", config, *words, "--sead", "1"])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["pytest"],
        ["/usr/bin/pytest", "--sead", "3"],
        ["/x/server/__main__.py", "run", "--config_file", "inference.yaml", "--sead", "3"],
        [MONAI, "verify_metadata", "--config_file", "inference.yaml", "--sead", "3"],
        [MONAI, "run", "--sead", "3"],
    ],
)
def test_other_command_lines_are_left_alone(argv):
    session.check_options(argv)


def test_start_seeds_and_limits_threads(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    before = torch.get_num_threads()
    try:
        session.start(5, threads=1)
        first = torch.rand(3)
        session.start(5)
        assert torch.equal(torch.rand(3), first)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
        set_determinism(None)
    assert sys.excepthook is not sys.__excepthook__


def test_torchrun_without_its_overlay_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "join", lambda: None)
    with pytest.raises(UserError, match=r"started 2 processes.*add configs/multi_gpu.yaml"):
        session.start()


def test_a_mistake_is_told_by_the_first_process_that_fails(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(processes, "_job", processes.Job(torch.distributed.HashStore(), 1, 2))
    error = UserError("wrong")
    for told in ("error: wrong", ""):
        session._report_mistakes()
        sys.excepthook(UserError, error, None)
        assert capsys.readouterr().err.strip() == told


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert session.process_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert session.process_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="--nproc_per_node 2"):
        session.process_device()


def test_start_refuses_the_command_line(config, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", [MONAI, "run", "--config_file", config, "--sead", "3"])
    with pytest.raises(UserError, match="--sead"):
        session.start()


# ------------------------------------------------------------------------------------------- labels and the list


@pytest.fixture
def datalist() -> DataList:
    return DataList(dataset="ACDC", labels={"RV": 1, "MYO": 2, "LV": 3}, cases=[])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (None, {"RV": 1, "MYO": 2, "LV": 3}),
        ("LV", {"LV": 3}),
        (["LV", "RV"], {"LV": 3, "RV": 1}),
        (("MYO",), {"MYO": 2}),
    ],
)
def test_labels_asked_for(datalist, names, labels):
    assert list(session.select_labels(datalist, names).items()) == list(labels.items())


def test_unknown_label_names_those_there_are(datalist):
    with pytest.raises(UserError, match="label 'LA' is not in the data list: it has RV, MYO, LV"):
        session.select_labels(datalist, ["LV", "LA"])


def test_no_label_at_all_is_refused(datalist):
    with pytest.raises(UserError, match="--labels is empty"):
        session.select_labels(datalist, [])


def test_without_a_data_list_a_phantom_is_written(tmp_path):
    path = session.find_datalist(None, tmp_path / "out")
    assert path == tmp_path / "out" / "phantom" / "phantom.json"
    assert len(json.loads(path.read_text())["cases"]) == 3


def test_the_phantom_is_refused_to_weights_that_know_other_structures(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"segment RV, lesion, which the phantom patient.*give --datalist"):
        session.refuse_phantom(None, ["RV", "lesion"])
    session.refuse_phantom("list.json", ["RV"])
    session.refuse_phantom(None, ["lesion"])
    session.refuse_phantom(None, "lesion")
    session.refuse_phantom(None, None)
    monkeypatch.setattr(session, "served_folder", lambda: tmp_path)
    session.refuse_phantom(None, ["RV"])


def test_classes_are_counted_without_a_data_list_where_the_labels_are_known(tmp_path):
    assert session.count_classes(["RV", "MYO", "LV"], "missing.json", None, tmp_path / "out") == 4
    assert session.count_classes("RV", None, None, tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
    assert session.count_classes(None, None, None, tmp_path / "out") == 3
    with pytest.raises(UserError, match="--labels is empty"):
        session.count_classes([], None, None, tmp_path / "out")


def test_a_data_list_is_taken_as_given(tmp_path):
    assert session.find_datalist(str(tmp_path / "list.json"), tmp_path / "out") == tmp_path / "list.json"
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- weights


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle with two weights, one of them with its record."""
    models = tmp_path / "bundle" / "models"
    models.mkdir(parents=True)
    for name in ("compact_acdc", "compact_chaos"):
        torch.save({"w": torch.zeros(1)}, models / f"{name}.pt")
    return tmp_path / "bundle"


def record(path: Path, sha256: str, patients=("p1", "p2")) -> None:
    data = TrainingData(dataset="ACDC", patients=list(patients), labels="dense", licence="CC BY-NC-SA 4.0")
    write_record(
        path,
        WeightRecord(name=path.stem, variant="compact", datasets=[data], command="c", licence="l", sha256=sha256),
    )


@pytest.mark.parametrize(("given", "name"), [(None, "compact_acdc"), ("compact_chaos", "compact_chaos")])
def test_weights_by_name(bundle, given, name):
    assert session.find_checkpoint(given, "compact", bundle) == bundle / "models" / f"{name}.pt"


def test_weights_by_path(bundle, tmp_path):
    torch.save({}, tmp_path / "mine.pth")
    assert session.find_checkpoint(str(tmp_path / "mine.pth"), "vit_b", bundle) == tmp_path / "mine.pth"


def test_a_file_goes_before_a_name(bundle, tmp_path, monkeypatch):
    torch.save({}, tmp_path / "compact_acdc")
    monkeypatch.chdir(tmp_path)
    assert session.find_checkpoint("compact_acdc", "compact", bundle) == Path("compact_acdc")


def test_official_weights_are_fetched_for_a_variant(bundle, monkeypatch):
    monkeypatch.setattr(session, "fetch_checkpoint", lambda variant: Path(f"{variant}.pth"))
    assert session.find_checkpoint(None, "vit_b", bundle) == Path("vit_b.pth")


def test_missing_weights_name_those_there_are(bundle):
    with pytest.raises(UserError, match=r"checkpoint acdc does not exist.*\(compact_acdc, compact_chaos\)"):
        session.find_checkpoint("acdc", "compact", bundle)


def test_unknown_variant_is_refused(bundle):
    with pytest.raises(UserError, match="sam_variant 'vit_x' is unknown: choose one of compact, vit_b"):
        session.find_checkpoint(None, "vit_x", bundle)


def test_sha256_of_the_record_is_checked(bundle):
    path = bundle / "models" / "compact_acdc.pt"
    record(path, sha256_of(path))
    assert session.find_checkpoint(None, "compact", bundle) == path
    record(path, "0" * 64)
    with pytest.raises(UserError, match=r"compact_acdc\.pt: the sha256 is"):
        session.find_checkpoint(None, "compact", bundle)


# ----------------------------------------------------------------------------------------------- overlap, outputs


PAIRS = [{"patient": "p2"}, {"patient": "p3"}, {"patient": "p2"}]


def test_weights_that_saw_the_patients_are_refused(bundle):
    path = bundle / "models" / "compact_acdc.pt"
    record(path, "0")
    with pytest.raises(UserError, match=r"'compact_acdc' were trained on 1 of the acdc patients .*\(p2\)"):
        session.refuse_overlap(path, "acdc", PAIRS)
    session.refuse_overlap(path, "acdc", PAIRS, allow=True)
    session.refuse_overlap(path, "CHAOS", PAIRS)
    session.refuse_overlap(path, "ACDC", PAIRS[1:2])


def test_weights_without_a_record_are_not_refused(bundle):
    session.refuse_overlap(bundle / "models" / "compact_chaos.pt", "ACDC", PAIRS)


def test_a_shard_has_a_folder_of_its_own(tmp_path):
    assert session.run_folder(tmp_path) == tmp_path
    assert session.run_folder(tmp_path, "1/4") == tmp_path / "shard-1-of-4"


def test_settings_are_what_decides_a_result(tmp_path, bundle, datalist):
    """The config is that of the running expression, with its overrides and without what decides nothing."""
    weights = bundle / "models" / "compact_acdc.pt"
    config = {"seed": 0, "n_pos": [1, 3], "output_dir": "out", "imports": ["$import monai_ext.session as session"]}
    config |= {"list": datalist, "weights": str(weights), "device": "cuda:1"}
    config["settings"] = "$session.case_settings(@list, @weights, @device)"
    parser = ConfigParser(config)
    parser.update({"seed": 4, "n_pos": "$[1, 1]"})
    settings = parser.get_parsed_content("settings")
    assert settings["config"] == {
        "seed": 4,
        "n_pos": "$[1, 1]",
        "list": datalist,
        "weights": str(weights),
        "settings": config["settings"],
    }
    assert settings["weights"] == sha256_of(weights)
    assert settings["device"] == "cuda"
    assert settings["labels"] == datalist.labels
    assert session.running_config() == {}


def test_the_source_of_a_method_counts(monkeypatch, tmp_path):
    (tmp_path / "inferers").mkdir()
    monkeypatch.setattr(session, "__file__", str(tmp_path / "session.py"))
    keys = []
    for name, text in (("inferers/a.py", "x"), ("inferers/a.py", "y"), ("inferers/b.py", "y"), ("other.py", "z")):
        (tmp_path / name).write_text(text)
        keys.append(session._source_sha256())
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]


@pytest.mark.parametrize("cases", [[1, 2], []])
def test_handlers_end_a_run_without_cases_too(cases):
    events = []
    evaluator = Evaluator(torch.device("cpu"), DataLoader(cases), iteration_update=lambda engine, case: None)
    for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
        evaluator.add_event_handler(event, lambda engine, event=event: events.append(event))
    session.run_cases(evaluator)
    assert events == [Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED]


def test_prepare_checks_outputs_first(tmp_path, datalist):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        session.prepare([], {"LV": 3}, datalist, tmp_path / "file" / "out")


def test_prepare_hands_on_what_is_asked_for(tmp_path, datalist, monkeypatch):
    seen = {}
    monkeypatch.setattr(session, "check_pairs", lambda *args, **options: seen.update(args=args, **options))
    monkeypatch.setattr(session, "refuse_volumes_apart", lambda *args: seen.update(apart=args))
    monkeypatch.setattr(session, "examine", lambda *args, **options: seen.update(looked_at=options["only"]) or [])
    pairs = [{"image": "a.nii", "reference_image": ["r.nii"]}]
    session.prepare(pairs, {"LV": 3}, datalist, tmp_path / "out", "relative")
    assert seen == {
        "args": (pairs, datalist.labels, None),
        "asked": {"LV": 3},
        "apart": (pairs, "relative"),
        "looked_at": {"a.nii", "r.nii"},
    }
    assert (tmp_path / "out").is_dir()


def test_headers_are_looked_at_before_a_training(tmp_path):
    for name, length in (("image", 8), ("label", 9)):
        nib.save(nib.Nifti1Image(np.zeros((8, length, 4), np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    case = {"case": "a", "image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    cases = DataList(dataset="Toy", labels={"LV": 1}, cases=[Case(**case)])
    with pytest.raises(UserError, match=r"label\.nii\.gz"):
        session.look_at_headers(cases, [case])
    session.look_at_headers(cases, [])


def test_what_gives_a_wrong_result_is_told_before_a_run_once_a_kind(tmp_path, capsys):
    cases = []
    for name in ("a", "b", "c"):
        volume = nib.Nifti1Image(np.random.default_rng(0).integers(0, 900, (8, 8, 4)).astype(np.int16), np.eye(4))
        volume.header.set_xyzt_units("meter")
        nib.save(volume, tmp_path / f"{name}.nii.gz")
        cases.append({"case": name, "image": str(tmp_path / f"{name}.nii.gz"), "modality": "CT"})
    datalist = DataList(dataset="Toy", labels={"LV": 1}, cases=[Case(**case) for case in cases])
    session.look_at_headers(datalist, cases)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    for words in ("states lengths in m:", "which are no Hounsfield units"):
        (line,) = (line for line in lines if words in line)
        assert "case a: " in line
        assert "(and 2 more" in line


def test_the_first_of_several_processes_looks_at_the_headers(monkeypatch):
    store, looked = dist.HashStore(), []
    monkeypatch.setattr(session, "examine", lambda *args, **options: looked.append(processes.rank()) or [])
    cases = DataList(dataset="Toy", labels={"LV": 1}, cases=[])
    for rank in range(2):
        monkeypatch.setattr(processes, "_job", processes.Job(store, rank, 2))
        session.look_at_headers(cases, [])
    assert looked == [0]


def keep_settings(folder: Path, **changes: object) -> None:
    config = {"output_dir": str(folder), "seed": 0, "rounds": 1, "device": "cpu", **changes}
    parser = ConfigParser({"imports": ["$import monai_ext.session as session"], **config})
    parser["kept"] = "$session.keep_settings(@output_dir)"
    parser.get_parsed_content("kept")


def test_a_training_goes_on_with_its_own_settings_alone(tmp_path):
    keep_settings(tmp_path, seed=7)  # refused for another reason before its first stage
    keep_settings(tmp_path)
    (tmp_path / "round_0").mkdir()
    keep_settings(tmp_path, rounds=2, device="cuda")  # more rounds, another device
    with pytest.raises(RuntimeError) as caught:
        keep_settings(tmp_path, seed=1)
    assert isinstance(caught.value.__cause__, UserError)
    assert "another seed (0, now 1)" in str(caught.value.__cause__)
    keep_settings(tmp_path / "new", seed=1)
