from __future__ import annotations

import json

import pytest

from monai_ext import session
from monai_ext.errors import UserError

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
