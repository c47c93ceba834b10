from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from monai_ext import processes, session
from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.errors import UserError
from monai_ext.files import sha256_of
from monai_ext.session import weights


def record(path: Path, sha256: str, variant="compact", serves=None) -> None:
    data = TrainingData(dataset="ACDC", patients=["p1", "p2"], labels="dense", licence="CC BY-NC-SA 4.0")
    known = {"name": path.stem, "variant": variant, "command": "c", "licence": "l", "sha256": sha256, "serves": serves}
    write_record(path, WeightRecord(datasets=[data], **known))


@pytest.mark.parametrize("name", ["compact_acdc", "compact_chaos"])
def test_weights_by_name(bundle, name):
    assert session.find_weights(name, bundle, "compact") == bundle / "models" / f"{name}.pt"
    assert session.find_weights(name, bundle) == bundle / "models" / f"{name}.pt"


def test_without_a_name_the_data_list_decides(bundle, datalist):
    path = bundle / "models" / "compact_acdc.pt"
    record(path, sha256_of(path), serves={"structures": ["LV"]})
    assert session.find_weights(None, bundle, None, datalist) == path
    with pytest.raises(UserError, match="no weights are named: give --checkpoint, a path or one of"):
        session.find_weights(None, bundle)


def test_a_label_server_takes_the_weights_it_reads_itself(bundle, datalist, monkeypatch):
    monkeypatch.setattr(weights, "served_folder", lambda: bundle)
    (bundle / "models" / "model.pt").symlink_to("compact_chaos.pt")
    found = session.find_weights(None, bundle, None, datalist)
    assert found == (bundle / "models" / "compact_chaos.pt").resolve()


def test_variant_is_that_of_the_weights(bundle):
    path = bundle / "models" / "compact_acdc.pt"
    assert session.find_variant(path, None) == "compact"
    record(path, "", variant="compact_lite")
    assert session.find_variant(path, None) == "compact_lite"
    assert session.find_variant(path, "vit_b") == "vit_b"


def test_weights_by_path(bundle, tmp_path):
    torch.save({}, tmp_path / "mine.pth")
    assert session.find_weights(str(tmp_path / "mine.pth"), bundle, "vit_b") == tmp_path / "mine.pth"


def test_a_file_goes_before_a_name(bundle, tmp_path, monkeypatch):
    torch.save({}, tmp_path / "compact_acdc")
    monkeypatch.chdir(tmp_path)
    assert session.find_weights("compact_acdc", bundle, "compact") == Path("compact_acdc")


def test_official_weights_are_fetched_for_a_variant(bundle, monkeypatch):
    monkeypatch.setattr(weights, "fetch_checkpoint", lambda variant: Path(f"{variant}.pth"))
    assert session.find_weights(None, bundle, "vit_b") == Path("vit_b.pth")


def test_a_default_goes_before_the_data_list_and_a_name_before_both(bundle, datalist):
    assert session.find_weights(None, bundle, None, datalist, "compact_chaos").stem == "compact_chaos"
    assert session.find_weights("compact_acdc", bundle, default="compact_chaos").stem == "compact_acdc"


def test_no_weights_where_none_are_needed(bundle):
    assert session.find_weights("missing", bundle, needed=False) is None
    session.check_weights("missing", bundle, None, needed=False)


def test_a_training_starts_from_weights_or_at_random(bundle, monkeypatch):
    monkeypatch.setattr(weights, "fetch_checkpoint", lambda variant: Path(f"{variant}.pth"))
    assert session.find_initial_weights(None, bundle, "compact") is None
    assert session.find_initial_weights(None, bundle, "vit_l") == Path("vit_l.pth")
    assert session.find_initial_weights("compact_acdc", bundle, "compact").stem == "compact_acdc"


def test_a_folder_without_weights_is_no_bundle(tmp_path):
    with pytest.raises(UserError, match=r"there are no weights in .*models: is --bundle_root right"):
        session.find_weights("compact_acdc", tmp_path)
    with pytest.raises(UserError, match="there are no weights in"):
        session.check_weights(None, tmp_path, "compact", by_cases=True)


def test_weights_that_nobody_names_are_refused_early(bundle):
    session.check_weights(None, bundle, "vit_b")
    session.check_weights(None, bundle, "compact", by_cases=True)
    with pytest.raises(UserError, match=r"no weights are named.*\(compact_acdc, compact_chaos\)"):
        session.check_weights(None, bundle, "compact")


def test_the_first_of_several_processes_fetches_the_weights(bundle, tmp_path, monkeypatch):
    store, path = dist.HashStore(), tmp_path / "vit_b.pth"

    def fetch(variant: str) -> Path:
        assert processes.is_first() or path.exists(), "the second process fetches"
        path.touch()
        return path

    monkeypatch.setattr(weights, "fetch_checkpoint", fetch)
    for rank in range(2):
        monkeypatch.setattr(processes, "_job", processes.Job(store, rank, 2))
        assert session.find_weights(None, bundle, "vit_b") == path


def test_missing_weights_name_those_there_are(bundle):
    with pytest.raises(UserError, match=r"checkpoint acdc does not exist.*\(compact_acdc, compact_chaos\)"):
        session.find_weights("acdc", bundle, "compact")


def test_unknown_variant_is_refused(bundle):
    with pytest.raises(UserError, match="sam_variant 'vit_x' is unknown: choose one of compact, compact_lite, vit_b"):
        session.find_weights(None, bundle, "vit_x")


def test_sha256_of_the_record_is_checked(bundle):
    path = bundle / "models" / "compact_acdc.pt"
    record(path, sha256_of(path))
    assert session.find_weights("compact_acdc", bundle, "compact") == path
    record(path, "0" * 64)
    with pytest.raises(UserError, match=r"compact_acdc\.pt: the sha256 is"):
        session.find_weights("compact_acdc", bundle, "compact")


PAIRS = [{"patient": "p2"}, {"patient": "p3"}, {"patient": "p2"}]


def test_weights_that_saw_the_patients_are_refused(bundle):
    path = bundle / "models" / "compact_acdc.pt"
    record(path, "0")
    with pytest.raises(UserError, match=r"'compact_acdc' were trained on 1 of the acdc patients .*\(p2\)"):
        session.refuse_overlap(path, "acdc", PAIRS)
    session.refuse_overlap(path, "acdc", PAIRS, allow=True)
    session.refuse_overlap(path, "CHAOS", PAIRS)
    session.refuse_overlap(path, "ACDC", PAIRS[1:2])
    with pytest.raises(UserError, match=r"1 of the ACDC patients .*\(p2\)"):  # no patient: the case is one
        session.refuse_overlap(path, "ACDC", [{"case": "p2", "patient": ""}])


def test_weights_without_a_record_are_not_refused(bundle):
    session.refuse_overlap(bundle / "models" / "compact_chaos.pt", "ACDC", PAIRS)
