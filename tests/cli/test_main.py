"""Mistakes of a new user: each is answered with one sentence, without torch or MONAI."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ext.cli.bundle_verbs import VERBS, passed_over
from monai_ext.cli.main import MODULES, main
from monai_ext.cli.sources import recognise
from monai_ext.data.phantoms.dicom import write_ct_series, write_rtstruct
from monai_ext.errors import UserError

ROOT = Path(__file__).parents[2]
PAIR = ["follow-up", "--baseline", "a.nii", "--mask", "m.nii", "--target", "b.nii", "-o", "out"]
MISTAKES = {
    "verb": (["folow-up", "x"], "did you mean follow-up?"),
    "nothing like a verb": (["xyz"], "is no verb of monai-ext, see monai-ext --help"),
    "no folder": (["follow-up", "-o", "out"], "name a FOLDER"),
    "no output": (["follow-up", "images"], "-o/--output_dir"),
    "folder that is not there": (["follow-up", "imagse", "-o", "out"], "no such folder, did you mean images?"),
    "a file for a folder": (["follow-up", "a.nii", "-o", "out"], "this is a file; name the folder"),
    "an empty folder": (["follow-up", "empty", "-o", "out"], "neither DICOM nor NIfTI"),
    "dicom and nifti": (["follow-up", "both", "-o", "out"], "--input dicom or folder"),
    "roi without dicom": (["follow-up", "images", "--roi", "t=GTV", "-o", "out"], "--roi finds contours"),
    "option": ([*PAIR, "--sead", "3"], "unknown option --sead, did you mean --seed?"),
    "own option": ([*PAIR, "--modalty", "CT"], "unknown option --modalty, did you mean --modality?"),
    "two folders": (["follow-up", "images", "more", "-o", "out"], "'more' belongs to no option"),
    "value of nothing": ([*PAIR, "--seed", "1", "2"], "give a FOLDER, or --baseline"),
    "half a pair": (["follow-up", "--baseline", "a.nii", "-o", "out"], "--mask and --target is missing"),
    "pair and folder": ([*PAIR[:1], "images", *PAIR[1:]], "not both"),
    "file of the pair": ([*PAIR[:6], "c.nii", *PAIR[7:]], "--target c.nii: there is no such file"),
    "labels": ([*PAIR, "--labels", "tumour"], "'tumour' is not NAME=VALUE"),
    "labels twice": ([*PAIR, "--labels", "tumour=1", "tumour=2"], "'tumour' is given twice"),
    "mask to keep": ([*PAIR, "--keep", "liver"], "'liver' is not NAME=MASK"),
    "mask to keep that is not there": ([*PAIR, "--keep", "liver=no.nii"], "--keep liver: there is no no.nii"),
    "config": ([*PAIR, "--with", "evalute"], "has no config 'evalute', did you mean evaluate?"),
    "bundle": ([*PAIR, "--bundle", "empty"], "there is no configs/inference.yaml in it"),
    "kind of DICOM": ([*PAIR, "--dicom", "rt"], "invalid choice: 'rt'"),
    "data list": (["segment", "lst.json", "-o", "out"], "there is no such data list"),
    "data list of few-shot": (["few-shot", "lst.json", "--support", "a:1", "-o", "out"], "there is no such data list"),
    "option of reference": (["reference", "l.json", "--oragn", "x", "-o", "out"], "did you mean --organ?"),
    "config of online": (["online", "l.json", "--with", "strem", "-o", "out"], "did you mean stream?"),
    "option of the doctor": (["doctor", "list.json", "--fsat"], "unknown option --fsat, did you mean --fast?"),
    "value of labels": (["index", "folder", "images", "-o", "l.json", "--labels", "t=x"], "'t=x' is not NAME=VALUE"),
}


@pytest.mark.parametrize(("words", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(words, sentence, tmp_path, monkeypatch):
    for folder in ("images", "empty", "both"):
        (tmp_path / folder).mkdir()
    for name in ("a.nii", "m.nii", "b.nii", "images/a.nii", "both/a.nii"):
        (tmp_path / name).touch()
    (tmp_path / "both" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        main(words)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


IN_DICOM = {
    "no later visit": (["--roi", "tumour=GTV.*"], "no patient has an image of a visit later than its reference"),
    "no such contour": (["--roi", "tumour=GTVp$"], "GTVp"),
    "roi without a name": (["--roi", "GTV.*"], "NAME=REGEX"),
    "regular expression": (["--roi", "tumour=GTV("], "GTV("),
    "modality": (["--roi", "tumour=GTV.*", "--modality", "MR"], "holds images of CT, none of MR"),
    "labels for dicom": (["--labels", "tumour=GTV"], "'tumour=GTV' is not NAME=VALUE"),
}


@pytest.fixture(scope="module")
def one_visit(tmp_path_factory) -> Path:
    """A folder with a contoured CT and nothing else."""
    folder = tmp_path_factory.mktemp("dicom")
    files = write_ct_series(folder / "ct", np.mgrid[:16, :16, :4][0], np.diag([-2.0, -2.0, 4.0, 1.0]))
    heights = np.array([0.0, 4.0, 8.0])
    square = [[[x, y, z] for x, y in ((4, 4), (4, 20), (20, 20), (20, 4))] for z in heights]
    write_rtstruct(folder / "rs.dcm", files, {"GTV_1": square})
    return folder


@pytest.mark.parametrize(("words", "sentence"), IN_DICOM.values(), ids=IN_DICOM)
def test_a_mistake_with_dicom_is_one_sentence(words, sentence, one_visit, tmp_path):
    with pytest.raises(UserError) as caught:
        main(["follow-up", str(one_visit), *words, "-o", str(tmp_path / "out")])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--follow_up" not in str(caught.value)


@pytest.mark.parametrize("verb", [*VERBS, *MODULES])
def test_help_has_two_examples(verb, capsys):
    with suppress(SystemExit):
        main([verb, "--help"])
    assert capsys.readouterr().out.partition("examples:")[2].count(f"  monai-ext {verb} ") == 2


def test_help_needs_neither_torch_nor_monai():
    code = (
        "import sys; from monai_ext.cli.main import main\n"
        f"for verb in {[*VERBS, *MODULES]}:\n"
        "    try: main([verb, '--help'])\n"
        "    except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'monai', 'scipy', 'nibabel'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_show_prints_the_commands_and_writes_nothing(tmp_path, monkeypatch, capsys):
    for name in ("a.nii", "m.nii", "b.nii"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    main([*PAIR, "--labels", "tumour=3", "--show", "--seed", "1"])
    written, doctor, run, page = capsys.readouterr().out.splitlines()
    assert written.startswith("mkdir -p out && printf")
    assert '"tumour": 3' in written
    assert doctor == "python -m monai_ext.data.doctor out/datalist.json --follow_up yes"
    assert run.startswith("python -m monai.bundle run --config_file \"['")
    assert run.endswith("--datalist out/datalist.json --output_dir out --seed 1")
    assert page == "python -m monai_ext.evaluation.report out --follow_up --output out/report.html"
    assert not (tmp_path / "out").exists()


def test_show_of_dicom_goes_back_to_dicom(tmp_path, capsys):
    (tmp_path / "1").write_bytes(bytes(128) + b"DICM")
    main(["follow-up", str(tmp_path), "--roi", "tumour=GTV.*", "-o", str(tmp_path / "out"), "--show"])
    index, _, _, export, _ = capsys.readouterr().out.splitlines()
    assert index.startswith(f"python -m monai_ext.data.indexing dicom {tmp_path} -o ")
    assert index.endswith("--roi 'tumour=GTV.*'")
    assert export.startswith("python -m monai_ext.data.dicom.export --masks ")
    assert "--format rtstruct" in export
    assert f"--measures {tmp_path}/out/volumes.csv" in export


@pytest.mark.parametrize("suffix", ["", ".ima"])
def test_dicom_without_its_first_bytes_is_recognised(tmp_path, suffix):
    write_ct_series(tmp_path / "ct", np.zeros((4, 4, 3)), np.diag([-1.0, -1.0, 2.0, 1.0]))
    for path in (tmp_path / "ct").iterdir():
        path.with_suffix(suffix).write_bytes(path.read_bytes()[132:])
        path.unlink()
    assert recognise(tmp_path / "ct") == "dicom"
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "README").write_text("no image at all. " * 40)
    with pytest.raises(UserError, match="holds neither DICOM nor NIfTI nor pictures"):
        recognise(tmp_path / "text")


def test_the_reason_why_a_visit_is_missing_is_told(one_visit, tmp_path):
    """A later visit in a form that cannot be read is not just missing."""
    tree = tmp_path / "dicom"
    shutil.copytree(one_visit, tree)
    later = {"study_date": datetime.date(2030, 1, 1), "drop": (1,)}
    write_ct_series(tree / "later", np.mgrid[:16, :16, :4][0], np.diag([-2.0, -2.0, 4.0, 1.0]), **later)
    with pytest.raises(
        UserError, match=r"no patient has an image of a visit later.*\(passed over: .*1 slice is missing"
    ):
        main(["follow-up", str(tree), "--roi", "tumour=GTV.*", "-o", str(tmp_path / "out")])


def test_a_folder_that_does_not_tell_the_patients_is_refused(tmp_path):
    for name in ("visit0_image", "visit0_label", "visit1_image"):
        image = np.zeros((8, 8, 2), np.uint8)
        image[2:5, 2:5] = 1
        nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / f"{name}.nii.gz")
    with pytest.raises(UserError, match=r"nothing tells which images are of one patient.*--patient_pattern"):
        main(["follow-up", str(tmp_path), "-o", str(tmp_path / "out")])


def test_what_the_indexing_has_passed_over():
    text = "x: 1 case\nnote: y\nskipped: 2\n  /a/b (series 'c'): PT and not CT\n  p1: 1 slice is missing\nwritten to z"
    assert passed_over(text) == ["p1: 1 slice is missing", "/a/b (series 'c'): PT and not CT"]
    assert passed_over("x: 1 case\nskipped: nothing\nwritten to z") == []
