"""A learner keeps what it was given: resume, undo, replay, tampering, a full disk, many threads."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

from monai_ext.engines.online import OnlineLearner, journal
from monai_ext.errors import UserError


def teach(learner: OnlineLearner, make_object, numbers) -> None:
    for number in numbers:
        view, truth = make_object(number)
        learner.correct(learner.infer(view), truth)


def content(learner: OnlineLearner) -> tuple[dict[str, bytes], str]:
    tensors, values = learner.method.state()
    return {name: value.contiguous().numpy().tobytes() for name, value in tensors.items()}, json.dumps(values)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def taught(make_object, make_method, tmp_path) -> OnlineLearner:
    learner = OnlineLearner(make_method(), tmp_path / "state", "sam1")
    teach(learner, make_object, range(6))
    return learner


@pytest.mark.slow
def test_a_folder_is_taken_up_again_to_the_same_bytes(taught, make_object, make_method, tmp_path):
    again = OnlineLearner(make_method(), tmp_path / "state", "sam1")
    assert content(again) == content(taught)
    assert again.position == 6
    teach(again, make_object, range(6, 8))
    whole = OnlineLearner(make_method(), tmp_path / "whole", "sam1")
    teach(whole, make_object, range(8))
    assert files(tmp_path / "whole") == files(tmp_path / "state")


def test_corrections_since_the_last_state_are_learned_again(make_object, make_method, tmp_path):
    rare = OnlineLearner(make_method(), tmp_path / "rare", save_every=4)
    teach(rare, make_object, range(6))
    assert [path.name for path in (tmp_path / "rare" / "states").iterdir()] == ["000004.safetensors"]
    assert content(OnlineLearner(make_method(), tmp_path / "rare", save_every=4)) == content(rare)


def test_replay_rebuilds_the_same_state(taught):
    before = content(taught)
    taught.method.reset()
    taught.replay()
    assert content(taught) == before


def test_a_folder_of_corrections_alone_is_a_task_pack(taught, make_method, tmp_path):
    pack = tmp_path / "pack"
    shutil.copytree(tmp_path / "state", pack, ignore=shutil.ignore_patterns("states"))
    assert content(OnlineLearner(make_method(), pack, "sam1")) == content(taught)


@pytest.mark.slow
@pytest.mark.parametrize("number", [6, 3, None])
def test_undo_is_as_if_it_had_never_been(taught, make_object, make_method, number, tmp_path):
    undone = taught.undo(number)
    other = OnlineLearner(make_method())
    teach(other, make_object, [n for n in range(6) if n != undone - 1])
    assert content(taught) == content(other)
    teach(taught, make_object, [7])
    teach(other, make_object, [7])
    assert content(taught) == content(other)
    assert content(OnlineLearner(make_method(), tmp_path / "state", "sam1")) == content(other)


def test_the_last_correction_is_undone_from_the_state_before_it(taught, monkeypatch):
    monkeypatch.setattr(taught.method, "absorb", lambda correction: pytest.fail("learned anew"))
    assert taught.undo() == 6


def test_what_was_undone_cannot_be_undone_again(taught):
    taught.undo(6)
    with pytest.raises(UserError, match="cannot be undone"):
        taught.undo(6)
    assert taught.undo() == 5


@pytest.mark.slow
def test_a_correction_sent_again_replaces_the_first(taught, make_object, make_method, tmp_path):
    view, truth = make_object(5)
    taught.correct(taught.infer(view), ~truth)
    assert [key for key, _ in taught.method.alphas].count(view.key) == 1
    assert [s.key for s in taught.method.batch.samples].count(view.key) <= 1
    taught.replay(final=True)
    other = OnlineLearner(make_method())
    teach(other, make_object, range(5))
    other.correct(other.infer(view), ~truth)
    assert content(taught) == content(other)


def test_restart_forgets_and_is_kept(taught, make_object, make_method, tmp_path):
    taught.restart()
    assert content(taught) == content(OnlineLearner(make_method()))
    teach(taught, make_object, [9])
    assert content(OnlineLearner(make_method(), tmp_path / "state", "sam1")) == content(taught)


@pytest.mark.parametrize("position", [6, 5, 2, 0])
def test_rewind_goes_back_to_any_place(taught, make_object, make_method, position):
    taught.rewind(position)
    other = OnlineLearner(make_method())
    teach(other, make_object, range(position))
    assert content(taught) == content(other)
    assert taught.position == position == len(taught.log())


def test_a_step_without_feedback_is_kept(taught, make_method, tmp_path):
    before = content(taught)
    taught.step()
    assert content(taught) != before
    assert content(OnlineLearner(make_method(), tmp_path / "state", "sam1")) == content(taught)


# ---- what is refused, and that nothing is lost -----------------------------------------------------------------------


def test_another_sam_is_refused(taught, make_method, tmp_path):
    with pytest.raises(UserError, match="beside the SAM with sha256 sam1"):
        OnlineLearner(make_method(), tmp_path / "state", "sam2")


@pytest.mark.parametrize("options", [{"base": 4}, {"batch": 8}, {"policy": "fifo"}])
def test_other_settings_are_refused(taught, make_method, tmp_path, options):
    with pytest.raises(UserError, match=f"was learned with {next(iter(options))}"):
        OnlineLearner(make_method(**options), tmp_path / "state", "sam1")


def test_a_file_that_has_changed_is_refused_and_named(taught, tmp_path):
    path = tmp_path / "state" / "corrections" / "000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    before = content(taught)
    with pytest.raises(UserError, match=r"000002\.safetensors has changed"):
        taught.replay()
    assert content(taught) == before


def test_an_undo_that_needs_a_changed_file_changes_nothing(taught, tmp_path):
    path = tmp_path / "state" / "corrections" / "000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    before, journaled = content(taught), (tmp_path / "state" / "journal.jsonl").read_bytes()
    with pytest.raises(UserError, match="has changed"):
        taught.undo(4)
    assert content(taught) == before
    assert (tmp_path / "state" / "journal.jsonl").read_bytes() == journaled
    assert taught.undo(6) == 6  # for which the file is not needed


@pytest.mark.parametrize("change", ["undo", "final", "step"])
def test_what_fails_half_way_changes_nothing(taught, make_object, make_method, tmp_path, monkeypatch, change):
    view, truth = make_object(5)
    taught.correct(taught.infer(view), truth)  # the second of its key
    before, journaled = content(taught), (tmp_path / "state" / "journal.jsonl").read_bytes()
    actions = {"undo": lambda: taught.undo(3), "final": lambda: taught.replay(final=True), "step": taught.step}
    whole, count = type(taught.method).absorb, iter(range(99))

    def second_fails(method, correction):
        if next(count) == 1:
            raise RuntimeError("out of memory")
        return whole(method, correction)

    def fails(method):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(type(taught.method), "absorb", second_fails)
        patched.setattr(type(taught.method), "step", fails)
        with pytest.raises(RuntimeError):
            actions[change]()
    assert content(taught) == before
    assert (tmp_path / "state" / "journal.jsonl").read_bytes() == journaled
    view, truth = make_object(8)
    taught.correct(taught.infer(view), truth)
    assert content(OnlineLearner(make_method(), tmp_path / "state", "sam1")) == content(taught)


def test_a_changed_line_of_the_journal_is_refused(taught, make_method, tmp_path):
    path = tmp_path / "state" / "journal.jsonl"
    path.write_text(path.read_text().replace("case1/0", "case9/0"))
    with pytest.raises(UserError, match="line 2 has changed"):
        OnlineLearner(make_method(), tmp_path / "state", "sam1")


def test_names_with_separators_of_lines_are_read_back(make_object, make_method, tmp_path):
    learner = OnlineLearner(make_method(), tmp_path / "state", "sam1")
    view, truth = make_object(0)
    learner.correct(learner.infer(dataclasses.replace(view, key="a\u2028b\x85c/0")), truth)
    again = OnlineLearner(make_method(), tmp_path / "state", "sam1")
    assert [entry.key for entry in again.log()] == ["a\u2028b\x85c/0"]
    assert content(again) == content(learner)


def test_half_a_line_does_not_count(taught, make_method, tmp_path):
    before = content(taught)
    with open(tmp_path / "state" / "journal.jsonl", "ab") as stream:
        stream.write(b'{"number": 7, "ki')
    again = OnlineLearner(make_method(), tmp_path / "state", "sam1")
    assert content(again) == before


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (torch.zeros(48, 40), "empty"),
        (torch.ones(40, 48), "on the image's own grid"),
        (torch.ones(1, 48, 40), "on the image's own grid"),
    ],
)
def test_bad_corrections_are_refused_and_nothing_is_learned(taught, make_object, tmp_path, truth, message):
    before, on_disk = content(taught), files(tmp_path)
    with pytest.raises(UserError, match=message):
        taught.correct(taught.infer(make_object(8)[0]), truth)
    assert content(taught) == before
    assert files(tmp_path) == on_disk


def test_a_correction_of_another_image_is_refused(taught, make_object):
    view, truth = make_object(8)
    with pytest.raises(UserError, match="another image"):
        taught.correct(taught.infer(view), truth, image_sha256="0" * 64)


def test_a_full_disk_at_the_correction_keeps_the_state_of_before(taught, make_object, tmp_path, monkeypatch):
    before, on_disk = content(taught), files(tmp_path)
    view, truth = make_object(8)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(journal, "save_file", full)
        with pytest.raises(UserError, match="No space left"):
            taught.correct(taught.infer(view), truth)
    assert content(taught) == before
    assert files(tmp_path) == on_disk
    taught.correct(taught.infer(view), truth)
    assert taught.position == 7


def test_a_full_disk_at_the_state_loses_no_correction(taught, make_object, make_method, tmp_path, monkeypatch):
    view, truth = make_object(8)
    whole = journal.save_file

    def full(tensors, path, metadata):
        if "states" in str(path):
            raise OSError(28, "No space left on device")
        return whole(tensors, path, metadata=metadata)

    former = (tmp_path / "state" / "states" / "000006.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(journal, "save_file", full)
        with pytest.raises(UserError, match="No space left"):
            taught.correct(taught.infer(view), truth)
    assert (tmp_path / "state" / "states" / "000006.safetensors").read_bytes() == former
    assert content(OnlineLearner(make_method(), tmp_path / "state", "sam1")) == content(taught)


def test_a_frozen_learner_answers_and_writes_nothing(taught, make_object, make_method, tmp_path):
    on_disk = files(tmp_path)
    frozen = OnlineLearner(make_method(), tmp_path / "state", "sam1", frozen=True)
    view, truth = make_object(8)
    assert torch.equal(frozen.infer(view).logits, taught.infer(view).logits)
    with pytest.raises(UserError, match="frozen"):
        frozen.correct(frozen.infer(view), truth)
    assert files(tmp_path) == on_disk
    with pytest.raises(UserError, match="holds no learner"):
        OnlineLearner(make_method(), tmp_path / "nothing", "sam1", frozen=True)


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_an_answer_does_not_wait_for_a_step_and_sees_none_half_done(taught, make_object):
    view, truth = make_object(8)
    expected = taught.infer(view).logits
    training, go_on = threading.Event(), threading.Event()
    train = taught.method._train

    def slow(batch):
        trained = train(batch)  # the weights have changed
        training.set()
        assert go_on.wait(30)
        return trained

    taught.method._train = slow
    worker = threading.Thread(target=lambda: taught.correct(taught.infer(view), truth))
    worker.start()
    assert training.wait(30)
    during = taught.infer(view)
    assert torch.equal(during.logits, expected)
    assert during.position == 6
    go_on.set()
    worker.join(30)
    assert taught.infer(view).position == 7


@pytest.mark.slow
def test_corrections_of_many_threads_are_all_kept(make_object, make_method, tmp_path):
    learner = OnlineLearner(make_method(), tmp_path / "state")

    def client(first: int) -> None:
        teach(learner, make_object, range(first, first + 3))

    clients = [threading.Thread(target=client, args=(10 * n,)) for n in range(4)]
    for one in clients:
        one.start()
    for one in clients:
        one.join(60)
    entries = learner.log()
    assert [entry.number for entry in entries] == list(range(1, 13))
    assert len({entry.key for entry in entries}) == 12
    assert content(OnlineLearner(make_method(), tmp_path / "state")) == content(learner)
