from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_ext import session
from monai_ext.data.provenance import TrainingData, WeightRecord, read_record, verify_weights, write_record
from monai_ext.errors import UserError
from monai_ext.files import sha256_of
from monai_ext.networks.state_dict import read_checkpoint
from monai_ext.session.safetensors import main, write_safetensors


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "own.pt"
    shared = torch.arange(6.0)
    state = {"w": shared.half().reshape(2, 3).T, "first": shared[:2], "rest": shared[2:], "steps": torch.tensor(7)}
    torch.save(state, path)
    data = TrainingData(dataset="ACDC", patients=["p1"], labels="dense", licence="CC BY-NC-SA 4.0")
    made = {"name": "own", "variant": "compact", "command": "train", "licence": "CC BY-NC-SA 4.0"}
    write_record(path, WeightRecord(datasets=[data], sha256=sha256_of(path), **made))
    return path


def test_the_same_tensors_and_record_in_one_file(weights):
    main([str(weights)])
    path = weights.with_suffix(".safetensors")
    before, after = read_checkpoint(weights, "toy"), read_checkpoint(path, "toy")
    assert {name: (value.dtype, value.tolist()) for name, value in before.items()} == {
        name: (value.dtype, value.tolist()) for name, value in after.items()
    }
    record = read_record(weights)
    weights.with_suffix(".json").unlink()
    assert read_record(path) == record
    assert session.weights_sha256(path) == sha256_of(weights)  # what was trained beside one fits the other
    with pytest.raises(UserError, match=r"were trained on 1 of the ACDC patients"):
        session.refuse_overlap(path, "ACDC", [{"patient": "p1"}])


def test_a_changed_tensor_is_noticed(weights, bundle):
    path = write_safetensors(weights)
    assert session.find_weights(str(path), bundle) == path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="the sha256 of its tensors is not the one in its header"):
        session.find_weights(str(path), bundle)


def test_what_has_no_record_or_is_not_its_records_is_refused(weights, tmp_path):
    with pytest.raises(UserError, match=r"--output .*own\.pt: the name of a safetensors file ends in"):
        write_safetensors(weights, tmp_path / "out" / "own.pt")
    torch.save({"w": torch.ones(1)}, weights)
    with pytest.raises(UserError, match="the sha256 is"):
        write_safetensors(weights)
    torch.save({"w": torch.full((1,), torch.inf)}, weights)
    with pytest.raises(UserError, match="NaN or infinite"):
        write_safetensors(weights)
    torch.save({"epoch": 3}, weights)
    with pytest.raises(UserError, match="not a plain state dict"):
        write_safetensors(weights)
    torch.save({"w": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="has no record"):
        write_safetensors(tmp_path / "other.pt")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_weights_by_name_are_either_file_and_are_listed_once(weights, bundle):
    models = bundle / "models"
    written = write_safetensors(weights, models / "own.safetensors")
    assert session.find_weights("own", bundle) == written
    torch.save({"w": torch.zeros(1)}, models / "own.pt")
    assert session.find_weights("own", bundle) == models / "own.pt"
    with pytest.raises(UserError, match=r"\(compact_acdc, compact_chaos, own\)"):
        session.find_weights("acdc", bundle)


def test_a_safetensors_file_of_others_is_known_by_the_record_beside_it(weights, bundle):
    from safetensors.torch import save_file

    path = bundle / "models" / "theirs.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    assert session.find_weights("theirs", bundle) == path
    record = read_record(weights)
    write_record(path, record)
    with pytest.raises(UserError, match="the sha256 is"):
        session.find_weights("theirs", bundle)
    write_record(path, record.model_copy(update={"sha256": sha256_of(path)}))
    verify_weights(path, read_record(path))
    assert session.weights_sha256(path) == sha256_of(path)
