from __future__ import annotations

import json

import pytest

from monai_ext import session
from monai_ext.errors import UserError
from monai_ext.session.options import describe_options

MONAI = "/site-packages/monai/bundle/__main__.py"


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


@pytest.mark.parametrize("words", [["--output_dir", "/a/#1/b"], ["--evaluator#handlers#0#output_dir", "a#1"]])
def test_what_monai_would_replace_in_a_name_is_refused(config, words):
    with pytest.raises(UserError, match="MONAI takes '#' for '::' in options"):
        session.check_options([MONAI, "run", "--config_file", config, *words])
    session.check_options([MONAI, "run", "--config_file", config, "--output_dir", "@a#b"])


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


PARTS = """
# ---- options
datalist: null
fold: null

# ---- the rest
cases: "$load(@datalist, @fold)"
names: "$select(@cases)"
targets: "@names"
device: "$choose()"
inferer:
  _target_: Inferer
  size: 3
handlers: []
further: {a: 1}
"""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cases", "['a']"], "--cases is no option, the config computes it from --datalist, --fold: give one"),
        (["--cases", "null"], "--cases is no option"),
        (["--cases", "{'a':1}"], "--cases is no option, the config computes it from --datalist, --fold: give one"),
        (["--cases", "{'a':{'b':'c'}}"], "--cases is no option"),
        (["--names", "3"], "--names is no option, the config computes it from --datalist, --fold"),
        (["--targets", "a"], "--targets is no option, the config computes it from --datalist, --fold"),
        (["--inferer", "a"], "--inferer is no option but a part of the config: give its arguments by their names"),
        (["--inferer", "['a']"], "--inferer is no option but a part of the config: give its arguments by their names"),
        (["--inferer", "{'size':4}"], "--inferer is no option but a part of the config"),
        (["--handlers", "{'a':1}"], "--handlers is no option but a list of the config"),
        (["--handlers", "3"], "--handlers is no option but a list of the config: give a config file that replaces it."),
    ],
)
def test_parts_of_a_config_take_no_plain_value(tmp_path, words, sentence):
    (tmp_path / "parts.yaml").write_text(PARTS)
    with pytest.raises(UserError) as error:
        session.check_options([MONAI, "run", "--config_file", str(tmp_path / "parts.yaml"), *words])
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    "words",
    [
        ["--cases", "$own(@fold)"],
        ["--cases", "{'_target_':'Own','fold':1}"],
        ["--cases", "{'a':{'b':'@fold'}}"],
        ["--targets", "@cases"],
        ["--inferer", "null"],
        ["--inferer", "{'_target_':'Other'}"],
        ["--inferer#size", "4"],
        ["--further", "{'a':2}"],
        ["--handlers", "[]"],
        ["--handlers", "['@inferer']"],
        ["--fold", "1"],
    ],
)
def test_another_expression_may_replace_a_part(tmp_path, words):
    (tmp_path / "parts.yaml").write_text(PARTS)
    session.check_options([MONAI, "run", "--config_file", str(tmp_path / "parts.yaml"), *words])


COMPONENTS = """
seed: 0                       # of everything
threads: null                 # of torch
early_stop: true
n_pos: [1, 3]                 # fewest and most
                              # points
device: "$1 + 1"
data_root: "@threads"
# ---- what is made of them ----
inferer: {_target_: monai_ext.inferers.p2sam.P2SamInferer, n_pos: "@n_pos", seed: "@seed"}
checkpoint: null
weights: "$find(@checkpoint, @device)"
network_def: {_target_: monai_ext.networks.sam.build_sam, variant: compact, checkpoint: "@weights"}
writer: {_target_: monai_ext.handlers.mask_writer.MaskWriter, output_dir: "@run_dir"}
run_dir: here
train:
  optimizer: {_target_: torch.optim.AdamW, lr: 0.1}
  loader: {_target_: DataLoader, batch_size: 1}
  evaluator: {_target_: SupervisedEvaluator, val_handlers: [{_target_: StatsHandler, name: x}]}
run: ["$None"]
"""


@pytest.fixture
def components(tmp_path) -> str:
    (tmp_path / "components.yaml").write_text(COMPONENTS)
    return str(tmp_path / "components.yaml")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("inferer#n_poss", "did you mean --inferer#n_pos?"),
        ("inferer::distnace", "did you mean --inferer::distance?"),
        ("infererr#n_pos", "did you mean --inferer#n_pos?"),
        ("train#optimizer#weight_decai", "did you mean --train#optimizer#weight_decay?"),
        ("train#evaluator#ampp", "did you mean --train#evaluator#amp?"),
        ("train#evaluator#val_handlers#0#nam", "did you mean --train#evaluator#val_handlers#0#name?"),
        ("train#optimiser#lr", "did you mean --train#optimizer#lr?"),
        ("inferer#qqq", "P2SamInferer takes labels, load_reference"),
    ],
)
def test_an_argument_that_a_component_does_not_have_is_refused(components, option, hint):
    with pytest.raises(UserError) as error:
        session.check_options([MONAI, "run", "--config_file", components, f"--{option}", "1"])
    assert str(error.value).startswith(f"unknown option --{option}, {hint}")


@pytest.mark.parametrize(
    "words",
    [
        ["--inferer#slice_match", "relative"],
        ["--inferer#_disabled_", "true"],
        ["--network_def#image_size", "64"],  # **compact
        ["--train#loader#num_workers", "2"],  # **kwargs
        ["--train#optimizer#fused", "true"],
        ["--train#evaluator#amp", "$1 > 0"],
    ],
)
def test_arguments_that_a_component_has_pass(components, words):
    session.check_options([MONAI, "run", "--config_file", components, *words])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seed", "1.5"], "--seed is 1.5: a whole number is expected, such as 0."),
        (["--seed=true"], "--seed is true: a whole number is expected"),
        (["--seed"], "--seed is True: a whole number is expected"),
        (["--seed", "None"], "--seed None is ignored by MONAI: write --seed null."),
        (["--inferer#seed", "1.5"], "--inferer#seed is 1.5: a whole number is expected"),
        (["--n_pos#0", "x"], "--n_pos#0 is x: a whole number is expected"),
        (["--train#evaluator#amp", "5"], "--train#evaluator#amp is 5: true or false is expected"),
        (["--train#optimizer#lr", "x"], None),  # a float or a tensor: torch's own
    ],
)
def test_values_are_of_the_kind_of_the_default(components, words, sentence):
    if sentence is None:
        session.check_options([MONAI, "run", "--config_file", components, *words])
        return
    with pytest.raises(UserError) as error:
        session.check_options([MONAI, "run", "--config_file", components, *words])
    assert str(error.value).startswith(sentence)


def test_words_of_yaml_are_handed_back(components):
    words = ["--early_stop", "false", "--threads", "null", "--seed", "1e2", "--data_root", "here", "--device", "cpu"]
    found = session.check_options([MONAI, "run", "--config_file", components, *words, "--train#evaluator#amp", "true"])
    assert found == {"early_stop": False, "threads": None, "seed": 100, "train::evaluator::amp": True}


def test_an_option_that_overlays_declare_otherwise_takes_anything(config, tmp_path):
    (tmp_path / "overlay.yaml").write_text("seed: null\nn_pos: {window: [1, 2]}\n")
    files = f"['{config}','{tmp_path / 'overlay.yaml'}']"
    session.check_options([MONAI, "run", "--config_file", files, "--seed", "x", "--n_pos", "none"])


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--", "--help"]])
def test_help_lists_the_options_with_their_comments(components, capsys, words):
    with pytest.raises(SystemExit) as end:
        session.check_options([MONAI, "run", "--config_file", components, *words])
    assert end.value.code == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["--seed", "0", "of", "everything"] in lines
    assert ["--n_pos", "[1,", "3]", "fewest", "and", "most", "points"] in lines
    assert not any(line[:1] in (["--inferer"], ["--train"], ["--run"]) for line in lines)


@pytest.mark.parametrize(
    ("option", "instead"),
    [("network_def#checkpoint", "checkpoint"), ("writer::output_dir", "run_dir")],
)
def test_one_use_of_a_file_is_not_replaced_behind_the_record(components, option, instead):
    with pytest.raises(UserError, match=rf"--{option} would replace one use of .*: give --{instead}\."):
        session.check_options([MONAI, "run", "--config_file", components, f"--{option}", "x"])
    session.check_options([MONAI, "run", "--config_file", components, f"--{instead}", "x"])


def test_the_options_of_a_config_are_those_below_its_heading(tmp_path):
    """Those that are computed from others, too; what an overlay without a heading computes is none."""
    below = '# ---- options: --KEY VALUE ---\nsize: "$f(@weights, 256)"  # of a slice\nn: 3  # points\n'
    below += "# ---- data ---\nm: 1\n"
    (tmp_path / "inference.yaml").write_text(f"imports: []\n{below}")
    (tmp_path / "evaluate.yaml").write_text('tolerance: 2.0  # mm\npairs: "$f(@cases)"\n')
    told = describe_options([tmp_path / "inference.yaml", tmp_path / "evaluate.yaml"])
    options = [line.split() for line in told.splitlines() if line.startswith("  --")]
    assert options == [
        ["--size", "(computed)", "of", "a", "slice"],
        ["--n", "3", "points"],
        ["--tolerance", "2.0", "mm"],
    ]
