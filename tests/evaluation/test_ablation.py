from __future__ import annotations

import csv
import io
import json

import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation import ablation, bundle_runs
from monai_ext.evaluation.ablation import (
    Ablation,
    AblationRow,
    Setting,
    TrainedAblation,
    ablation_text,
    main,
    read_tables,
)
from monai_ext.evaluation.summary import summarise, write_summary
from monai_ext.evaluation.table import write_rows

CONFIG = """
bundle_root: .
datalist: null
output_dir: out
n_pos: [1, 3]
n_neg: [1, 3]
n_range: null
distance: wasserstein
seed: 0
algorithm: method
network_def:
  _target_: Network
handlers:
  - _target_: monai_ext.handlers.case_table.CaseTable
"""
TABLES: dict[str, dict[str, dict]] = {
    "parts": {
        "n1": {"n_pos": [1, 1], "n_neg": [1, 1]},
        "n1-1": {"n_neg": [1, 1], "n_pos": [1, 1]},
        "n1-3": {"n_pos": [1, 3]},
        "n4": {"n_pos": [4, 4], "n_neg": [4, 4]},
    },
    "distance": {"n4": {"n_pos": [4, 4], "n_neg": [4, 4]}, "hungarian": {"distance": "hungarian"}},
    "boxes": {"box": {"previous_box": "box"}},
}
DICE = {"method": (0.5, 0.6, 0.7), "method_n1": (0.4, 0.6, 0.6)}
"""Of three patients; other runs have 0.1 more than the default."""


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "inference.yaml").write_text(CONFIG)
    (tmp_path / "bundle" / "configs" / "ablations.json").write_text(json.dumps(TABLES))
    return tmp_path / "bundle"


@pytest.fixture
def runs(monkeypatch, make_row):
    """The options of each run that is asked for, in place of running it: its tables are written at once."""
    asked = []

    class Workflow:
        def __init__(self, files, **options) -> None:
            assert options.pop("workflow_type") == ("infer" if "algorithm" in options else "train")
            del files, options["logging_file"]
            self.options = options

        def initialize(self) -> None:
            asked.append(self.options)

        def run(self) -> None:
            name, folder = self.options.get("algorithm"), self.options["output_dir"]
            if name is None:  # a training
                return
            values = DICE.get(name, [value + 0.1 for value in DICE["method"]])
            rows = [
                make_row(f"p{number}", label, value - less, algorithm=name)
                for number, value in enumerate(values)
                for label, less in (("a", 0.0), ("b", 0.2))
                if label in self.options.get("labels", "ab")
            ]
            write_rows(f"{folder}/metrics.csv", rows)
            write_summary(f"{folder}/summary.json", summarise(rows))

        def finalize(self) -> None:
            pass

    monkeypatch.setattr(bundle_runs, "ConfigWorkflow", Workflow)
    return asked


def test_each_setting_runs_once_in_its_own_folder_after_the_default(bundle, runs, tmp_path):
    rows = Ablation(bundle, ["inference"], tmp_path / "out", {"seed": 3}).table("parts")
    names = [asked["algorithm"] for asked in runs]
    assert names == ["method", "method_n1", "method_n4"]
    assert "n_pos" not in runs[0], "the default is the configs as they are"
    assert runs[2]["n_pos"] == [4, 4]
    assert {asked["seed"] for asked in runs} == {3}
    assert {asked["bundle_root"] for asked in runs} == {str(bundle)}
    assert [asked["output_dir"] for asked in runs] == [str(tmp_path / "out" / name) for name in names]
    run_of = {row.setting: row.algorithm for row in rows}
    assert run_of["default"] == run_of["n1-3"] == "method"
    assert run_of["n1"] == run_of["n1-1"] == "method_n1"


def test_tables_share_runs(bundle, runs, tmp_path):
    study = Ablation(bundle, ["inference"], tmp_path / "out")
    study.table("parts")
    study.table("distance")
    assert [asked["algorithm"] for asked in runs] == ["method", "method_n1", "method_n4", "method_hungarian"]


def test_a_bundle_without_tables_is_told(bundle):
    (bundle / "configs" / "ablations.json").unlink()
    with pytest.raises(UserError, match=r"ablations\.json is not there or holds no tables"):
        read_tables(bundle)


def test_options_for_all_count_when_settings_are_compared(bundle, runs, tmp_path):
    study = Ablation(bundle, ["inference"], tmp_path / "out", {"n_pos": [4, 4], "n_neg": [4, 4]})
    assert study.run(Setting("n4", {"n_pos": [4, 4], "n_neg": [4, 4]})) == "method"
    assert study.run(Setting("n1-3", {"n_pos": [1, 3], "n_neg": [1, 3]})) == "method_n1-3"


def test_rows_hold_means_and_setting_minus_default(bundle, runs, tmp_path):
    rows = Ablation(bundle, ["inference"], tmp_path / "out").table("parts")
    found = {(row.setting, row.label): row for row in rows}
    one = found["n1", "a"]
    assert (one.n, one.n_pairs, one.metric) == (3, 3, "dice")
    assert one.mean == pytest.approx(1.6 / 3)
    assert one.difference == pytest.approx(-0.2 / 3)
    assert -0.1 - 1e-9 <= one.difference_low <= one.difference <= one.difference_high <= 1e-9
    assert found["n4", "macro"].mean == pytest.approx(0.6)
    assert found["n4", "macro"].difference == pytest.approx(0.1)
    assert (found["default", "a"].difference, found["n1-3", "b"].difference) == (None, None)


def test_tables_are_written_as_csv_and_markdown(bundle, runs, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--bundle_root", str(bundle), "--configs", "inference", "--output_dir", str(out), "--datalist", "l.json"]
    main([*words, "--table", "distance", "parts", "--options", "{'seed': 1}"])
    assert {asked["datalist"] for asked in runs} == {"l.json"}
    lines = list(csv.DictReader(io.StringIO((out / "ablation.csv").read_text())))
    assert {line["table"] for line in lines} == {"distance", "parts"}
    assert tuple(lines[0]) == ablation.COLUMNS
    text = (out / "ablation.md").read_text()
    assert "| n1 | method_n1 | 0.533 [0.400, 0.600] | 0.333 [0.200, 0.400] | 0.433 [0.300, 0.500] |" in text
    assert "| n4 | +0.100 [+0.100, +0.100]," in text
    assert text in capsys.readouterr().out


def test_markdown_of_a_setting_without_a_value():
    row = AblationRow("parts", "default", "m", "{}", "hd95_mm", "a", 0, None, None, None)
    assert "| default | m | - |" in ablation_text([row])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--table", "sizes"], "there is no table 'sizes': choose from parts, distance"),
        (["--table", "parts", "--options", "{'sead': 1}"], "has the option 'sead'; did you mean seed"),
        (["--table", "parts", "--options", "{'network_deff#width': 1}"], "has the option 'network_deff#width'"),
        (["--table", "boxes"], "has the option 'previous_box'"),
        (["--table", "parts", "--options", "seed=1"], "--options seed=1 is no dictionary"),
        (["--table", "parts", "--options", "{'algorithm': 'x'}"], "must not hold 'algorithm'"),
        (["--table", "parts", "--configs", "['inference'"], "is no list"),
        (["--table", "parts", "--configs", "['evaluate']"], "there is no config 'evaluate'"),
        (["--table", "parts", "--configs", "['blind']"], "no config of --configs measures the cases"),
        (["--table", "parts", "--metric", "iou"], "the runs have no metric 'iou': choose --metric from dice"),
    ],
)
def test_mistakes_are_told_in_a_sentence(bundle, runs, tmp_path, words, told):
    (bundle / "configs" / "blind.yaml").write_text(CONFIG.partition("handlers")[0])
    given = ["--bundle_root", str(bundle), "--output_dir", str(tmp_path / "out")]
    given += [] if "--configs" in words else ["--configs", "['inference']"]
    with pytest.raises(UserError, match=told.replace("[", r"\[")) as raised:
        main([*given, *words])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "ablation.md").exists()
    assert len(runs) <= 1, "no setting is run in vain"


@pytest.fixture
def trained(bundle):
    """The bundle with a training, whose settings are tables of their own, and with supports."""
    (bundle / "configs" / "train.yaml").write_text("output_dir: out\nbundle_root: .\nfem: true\nsteps: 9\n")
    served = f"{CONFIG}support: null\ncheckpoint: null\nslice_match: middle\n"
    (bundle / "configs" / "inference.yaml").write_text(served)
    tables = {"modules": {"baseline": {"fem": False}, "again": {"fem": True}}}
    (bundle / "configs" / "ablations.json").write_text(json.dumps(tables))
    return bundle


def test_each_setting_is_trained_and_served_by_every_support(trained, runs, tmp_path):
    out = tmp_path / "out"
    words = ["--bundle_root", str(trained), "--configs", "inference", "--output_dir", str(out), "--table", "modules"]
    words += ["--train_configs", "train", "--train_options", "{'steps': 4}", "--supports", "a:1,2", "b"]
    main(words)
    trainings = [asked for asked in runs if "algorithm" not in asked]
    assert [asked["output_dir"] for asked in trainings] == [str(out / "trainings" / n) for n in ("default", "baseline")]
    assert [(asked["steps"], asked.get("fem")) for asked in trainings] == [(4, None), (4, False)]
    served = [asked for asked in runs if "algorithm" in asked]
    assert [asked["support"] for asked in served] == ["a:1,2", "b"] * 2
    assert served[2]["checkpoint"] == str(out / "trainings" / "baseline" / "model.pt")
    assert served[2]["output_dir"] == str(out / "method_baseline" / "a-1-2")
    assert "fem" not in served[2], "what the training was is told by its weights"
    rows = {(line["setting"], line["label"]): line for line in csv.DictReader((out / "ablation.csv").open())}
    assert int(rows["baseline", "a"]["n"]) == 6, "three patients, two supports"
    assert float(rows["baseline", "a"]["difference"]) == pytest.approx(0.1)
    assert rows["again", "a"]["algorithm"] == "method"


def test_another_protocol_takes_the_trainings(trained, runs, tmp_path):
    options = {"slice_match": "chunks", "algorithm": "method_chunks"}
    study = TrainedAblation(
        trained, ["train"], ["inference"], tmp_path / "out", options=options, trainings=tmp_path / "shared"
    )
    assert study.run(Setting("baseline", {"fem": False})) == "method_chunks_baseline"
    assert [asked["output_dir"] for asked in runs] == [
        str(tmp_path / "shared" / "baseline"),
        str(tmp_path / "out" / "method_chunks_baseline"),
    ]


def test_each_novel_structure_has_its_training_and_a_row_in_one_table(trained, runs, tmp_path):
    (trained / "configs" / "train.yaml").write_text("output_dir: out\nbundle_root: .\nfem: true\nnovel: null\n")
    served = f"{CONFIG}support: null\ncheckpoint: null\nlabels: null\n"
    (trained / "configs" / "inference.yaml").write_text(served)
    out = tmp_path / "out"
    words = ["--bundle_root", str(trained), "--configs", "inference", "--output_dir", str(out), "--table", "modules"]
    main([*words, "--train_configs", "train", "--supports", "s", "--novel", "a", "b"])
    trainings = [(one["novel"], one["output_dir"]) for one in runs if "algorithm" not in one]
    folders = [out / "trainings" / row / name for row in ("default", "baseline") for name in "ab"]
    assert trainings == [(folder.name, str(folder)) for folder in folders]
    served = [one for one in runs if "algorithm" in one]
    assert [one["labels"] for one in served] == [["a"], ["b"]] * 2
    assert [one["checkpoint"] for one in served] == [str(folder / "model.pt") for folder in folders]
    assert served[3]["output_dir"] == str(out / "method_baseline" / "b" / "s")
    rows = {(line["setting"], line["label"]): line for line in csv.DictReader((out / "ablation.csv").open())}
    assert float(rows["default", "macro"]["mean"]) == pytest.approx(0.5)
    assert float(rows["baseline", "b"]["mean"]) == pytest.approx(0.5)
    assert float(rows["baseline", "macro"]["difference"]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--train_configs", "train", "--novel", "a"], "no config of --train_configs has the option 'novel'"),
        (["--novel", "a"], "go with --train_configs"),
        (["--train_configs", "train", "--train_options", "{'stepps': 4}"], "no config of --train_configs has the opt"),
        (["--train_configs", "train", "--train_options", "{'output_dir': 'x'}"], "must not hold 'output_dir'"),
        (["--train_configs", "nothing"], "there is no config 'nothing'"),
        (["--supports", "a"], "go with --train_configs"),
        ([], "no config of --configs has the option 'fem'"),
    ],
)
def test_mistakes_of_trainings_are_told_in_a_sentence(trained, runs, tmp_path, words, told):
    given = ["--bundle_root", str(trained), "--configs", "inference", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match=told):
        main([*given, "--table", "modules", *words])
    assert len(runs) <= 1


def test_further_arguments_of_a_component_are_options(bundle, runs, tmp_path):
    Ablation(bundle, ["inference"], tmp_path / "out", {"network_def#width": 8}).run(Setting("default"))
    assert runs[0]["network_def#width"] == 8
