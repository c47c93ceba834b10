from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch.distributed as dist

from monai_ext import processes, session
from monai_ext.data.manifest import Case, DataList
from monai_ext.errors import UserError
from monai_ext.session import preflight


def test_prepare_checks_outputs_first(tmp_path, datalist):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        session.prepare([], {"LV": 3}, datalist, tmp_path / "file" / "out")


def test_prepare_hands_on_what_is_asked_for(tmp_path, datalist, monkeypatch):
    seen = {}
    monkeypatch.setattr(preflight, "check_pairs", lambda *args, **options: seen.update(args=args, **options))
    monkeypatch.setattr(preflight, "refuse_volumes_apart", lambda *args: seen.update(apart=args))
    monkeypatch.setattr(preflight, "examine", lambda *args, **options: seen.update(looked_at=options["only"]) or [])
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
    monkeypatch.setattr(preflight, "examine", lambda *args, **options: looked.append(processes.rank()) or [])
    cases = DataList(dataset="Toy", labels={"LV": 1}, cases=[])
    for rank in range(2):
        monkeypatch.setattr(processes, "_job", processes.Job(store, rank, 2))
        session.look_at_headers(cases, [])
    assert looked == [0]
