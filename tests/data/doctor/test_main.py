from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from monai_ext.data.doctor.__main__ import main
from monai_ext.data.phantoms.dicom import write_ct_series
from monai_ext.errors import UserError


def test_nothing_stops_a_run(study, capsys):
    main([str(study.write())])
    assert capsys.readouterr().out.splitlines()[-1] == "nothing stops a run: 0 errors, 0 warnings, 0 notes"


def test_an_error_gives_exit_code_1_and_json(study, capsys):
    study.save("b1_label.nii", study.label((12, 10, 5)))
    with pytest.raises(SystemExit) as stopped:
        main([str(study.write()), "--json", "--fast"])
    assert stopped.value.code == 1
    content = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in content["findings"]] == ["shape_differs"]


def test_options_reach_the_examination(study, capsys):
    study.save("b1_label.nii", study.label((12, 10, 5)))
    path = study.write().rename(study.folder.parent / f"{study.folder.name}.json")
    main([str(path), "--data_root", str(study.folder), "--split", "train", "--workers", "2"])
    assert "2 cases, 1 patient" in capsys.readouterr().out


def test_a_list_without_a_second_visit_stops_unless_it_is_for_something_else(study, capsys):
    del study.cases[3], study.cases[1]
    for case in study.cases:
        del case["split"], case["scribble"]
    with pytest.raises(SystemExit) as stopped:
        main([str(study.write()), "--fast"])
    assert stopped.value.code == 1
    assert "no patient has an image of a visit later than its reference" in capsys.readouterr().out
    main([str(study.write()), "--fast", "--follow_up", "no"])


def test_a_folder_is_examined_as_dicom(tmp_path, capsys):
    write_ct_series(tmp_path, np.zeros((4, 4, 6)), np.eye(4), drop=[3])
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 1
    assert "missing_slice (29)" in capsys.readouterr().out


def test_checks_are_listed(capsys):
    main(["--list_checks"])
    assert "gantry_tilt (error, 32)" in capsys.readouterr().out


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: there is no such file or folder"):
        main([str(tmp_path / "none.json")])


@pytest.mark.slow
def test_a_terminal_without_unicode_gets_the_report_all_the_same(study):
    study.cases[0]["case"] = "图"
    study.save("a0_label.nii", study.label((12, 10, 5)))
    command = [sys.executable, "-m", "monai_ext.data.doctor", str(study.write())]
    ended = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert ended.returncode == 1
    assert b"case ?: label a0_label.nii has shape" in ended.stdout


@pytest.mark.slow
def test_a_real_list_is_examined(real_data, capsys):
    main([str(real_data / "ACDC.json"), "--workers", "1"])
    assert capsys.readouterr().out.splitlines()[-1] == "nothing stops a run: 0 errors, 0 warnings, 1 note"


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_traceback(study):
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "monai_ext.data.doctor", str(study.write())]
    ended = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, check=False)
    os.close(written)
    assert (ended.returncode, ended.stderr) == (0, b"")
