"""What answers and learns behind a MONAI Label server, without one: prompts, submissions, what a kill leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_ext.data.images import read_label, write_mask
from monai_ext.data.studies import structure_values
from monai_ext.engines.online import AuxiliaryFusion, OnlineLearner
from monai_ext.engines.online.auxiliary import AuxiliarySettings
from monai_ext.errors import UserError
from monai_ext.label.inbox import Inbox
from monai_ext.label.online import OnlineService, check_label, take_lock
from monai_ext.label.parts import Parts
from monai_ext.label.viewer_prompts import read_prompts
from monai_ext.networks.sam import build_compact
from monai_ext.session.blocks import case_preprocessing, mask_postprocessing

TINY = {"image_size": 64, "stride": 8, "channels": [16, 16, 32, 32], "blocks": [1, 1, 1], "width": 32}
LABELS = {"disc": 1, "ring": 3}
SHAPE = (26, 20, 5)
ROI = [15, 8, 5, 12, 3, 1]  # ends in any order


def oblique() -> np.ndarray:
    """A volume stored as posterior, right, inferior, turned by 12 degrees."""
    turn = np.deg2rad(12)
    turned = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, -1]]) @ np.diag([2.0, 1.5, 6.0])
    affine[:3, 3] = (31.0, -17.0, 44.0)
    return affine


def write_study(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    rng = np.random.default_rng(seed)
    truth = np.zeros(SHAPE, np.uint8)
    truth[8:16, 5:13] = 1
    image = folder / "study.nii.gz"
    nib.save(nib.Nifti1Image((100.0 * truth + rng.normal(0, 5, SHAPE)).astype(np.float32), oblique()), image)
    write_mask(folder / "label.nii.gz", truth, like=image)
    return image, folder / "label.nii.gz"


def make_parts(folder: Path | None, prompt: str = "box") -> Parts:
    torch.manual_seed(2)
    settings = AuxiliarySettings(base=2, crop=32, batch=3, sam_channel="mask")
    preprocessing = case_preprocessing(64)
    return Parts(
        LABELS,
        {name: OnlineLearner(AuxiliaryFusion(settings), folder and folder / name, "sam1") for name in LABELS},
        build_compact(**TINY).eval(),
        preprocessing,
        case_preprocessing(64, masks="label"),
        mask_postprocessing(preprocessing, LABELS),
        prompt,
    )


@pytest.fixture(scope="module")
def frame_image(tmp_path_factory):
    image, _ = write_study(tmp_path_factory.mktemp("study"))
    return case_preprocessing(64)({"image": str(image)})["image"]


@pytest.fixture
def service(tmp_path) -> OnlineService:
    return OnlineService(make_parts(tmp_path / "learners"), tmp_path)


def submit(service: OnlineService, image: Path, label: Path, answered: bool = True, **values) -> str:
    what = {"kind": "label", "study": "study", "image": str(image), "values": values or LABELS}
    return service.inbox.put(what, label, service.answers.of("study") if answered else [])


def learn(service: OnlineService) -> None:
    """Do what the thread does, here."""
    for one in service.inbox.waiting():
        service._take(one)


def corrections(service: OnlineService, name: str = "disc") -> list:
    return [entry for entry in service.parts.learners[name].log() if entry.kind == "correction"]


# ------------------------------------------------------------------------------------------------------- prompts


def test_a_roi_is_a_box_on_each_of_its_slices(frame_image):
    found = read_prompts({"roi": ROI}, frame_image, LABELS)
    assert sorted(found) == [("disc", 1), ("disc", 2), ("disc", 3)]
    truth = torch.zeros(SHAPE)
    truth[8:16, 5:13, 1:4] = 1
    for prompt in found.values():
        x0, y0, x1, y1 = prompt.box.tolist()
        inside = frame_image[0, round(y0) : round(y1) + 1, round(x0) : round(x1) + 1, 2].mean()
        assert inside > 200  # the bright square lies in the box, whichever way the volume is stored


def test_a_roi_as_slicer_sends_it_is_cut_off_at_the_image(frame_image):
    # pairs by axis; the ends are those of opposite RAS corners, so they swap where an axis runs the other way
    slicer = read_prompts({"roi": [99, 8, -7, 12, 3, -2], "label": "disc"}, frame_image, LABELS)
    within = read_prompts({"roi": [8, SHAPE[0] - 1, 0, 12, 0, 3]}, frame_image, LABELS)
    assert sorted(slicer) == sorted(within) == [("disc", k) for k in range(SHAPE[2])[-4:]]
    assert all(torch.equal(slicer[place].box, within[place].box) for place in within)


def test_points_of_a_slice_are_one_prompt_and_names_are_foreground(frame_image):
    params = {"foreground": [[10, 8, 2]], "background": [[1, 1, 2]], "ring": [[20, 15, 0]], "structure": "disc"}
    found = read_prompts(params, frame_image, LABELS)
    assert {(name, tuple(prompt.labels.tolist())) for (name, _), prompt in found.items()} == {
        ("disc", (1, 0)),
        ("ring", (1,)),
    }


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "there is no prompt"),
        ({"background": [[1, 1, 1]]}, "there is no prompt"),
        ({"roi": [1, 2, 3, 4]}, "two numbers for each of the image's 3 axes"),
        ({"roi": [90, 99, 0, 1, 0, 1]}, "outside of the image"),
        ({"foreground": "here"}, "voxel indices"),
        ({"foreground": [[1, 1, 1]], "structure": "square"}, "'square' is unknown"),
    ],
)
def test_what_is_no_prompt_is_a_sentence(frame_image, params, words):
    with pytest.raises(UserError, match=words):
        read_prompts(params, frame_image, LABELS)


# ---------------------------------------------------------------------------------------- answers and corrections


def test_a_mask_is_on_the_files_grid_and_within_the_box(service, tmp_path):
    image, _ = write_study(tmp_path)
    mask, said = service.ask("study", image, {"roi": ROI})
    assert mask.shape == SHAPE
    assert not mask[:, :, [0, 4]].any()
    assert not mask[:7].any()
    assert not mask[17:].any()
    assert [one["slice"] for one in said["answers"]] == [1, 2, 3]


def test_a_label_corrects_each_answer_of_its_study(service, tmp_path):
    image, label = write_study(tmp_path)
    service.ask("study", image, {"roi": ROI})
    number = submit(service, image, label)
    learn(service)
    assert [one["slice"] for one in service.inbox.outcome(number)["learned"]] == [1, 2, 3]
    assert len(corrections(service)) == 3
    assert not corrections(service, "ring")
    truth = service.parts.learners["disc"]._journal.read(1).truth
    assert truth.float().mean() > 0.8  # the crop is the square's, in whole pixels


@pytest.mark.slow
def test_a_second_label_of_a_place_replaces_the_first(service, tmp_path):
    image, label = write_study(tmp_path)
    for _ in range(2):
        service.ask("study", image, {"roi": ROI})
        submit(service, image, label)
        learn(service)
    assert len(corrections(service)) == 6
    assert len(service.parts.learners["disc"].method.batch.samples) == 3
    service.inbox.put({"kind": "replay", "finals": []})
    learn(service)
    assert len(service.parts.learners["disc"]._counting(service.parts.learners["disc"]._journal)) == 3


def test_a_viewers_own_numbers_are_heeded(service, tmp_path):
    image, label = write_study(tmp_path)
    write_mask(label, 7 * read_label(label), like=image)
    service.ask("study", image, {"roi": ROI})
    submit(service, image, label, disc=7)
    learn(service)
    assert len(corrections(service)) == 3


@pytest.mark.slow
def test_without_an_answer_the_boxes_are_those_of_the_label(service, tmp_path):
    image, label = write_study(tmp_path)
    submit(service, image, label, answered=False)
    learn(service)
    assert len(corrections(service)) == SHAPE[2]


def test_without_an_answer_a_learner_of_points_refuses_and_keeps_the_label(tmp_path):
    service = OnlineService(make_parts(tmp_path / "learners", "point"), tmp_path)
    image, label = write_study(tmp_path)
    number = submit(service, image, label, answered=False)
    learn(service)
    assert "corrects no answer" in service.inbox.outcome(number)["refused"][0]
    assert (tmp_path / "refused" / number / "label.nii.gz").is_file()
    assert not corrections(service)


def test_another_image_of_the_same_name_is_refused_and_kept(service, tmp_path):
    image, label = write_study(tmp_path)
    service.ask("study", image, {"roi": ROI})
    write_study(tmp_path, seed=1)
    number = submit(service, image, label)
    learn(service)
    assert all("another image with the same name" in one for one in service.inbox.outcome(number)["refused"])
    assert (tmp_path / "refused" / number).is_dir()
    assert not corrections(service)


def test_labels_of_other_grids_and_empty_ones_are_refused(tmp_path):
    image, label = write_study(tmp_path)
    check_label(image, label, LABELS)
    moved = oblique()
    moved[0, 3] += 1
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), moved), tmp_path / "moved.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), oblique()), tmp_path / "small.nii.gz")
    write_mask(tmp_path / "empty.nii.gz", np.zeros(SHAPE, np.uint8), like=image)
    for name, words in (("moved", "elsewhere in space"), ("small", "2 x 2 x 2 voxels"), ("empty", "is empty")):
        with pytest.raises(UserError, match=words):
            check_label(image, tmp_path / f"{name}.nii.gz", LABELS)


def test_a_label_whose_segments_have_other_names_is_refused(tmp_path):
    image, label = write_study(tmp_path)
    values = structure_values({"label_info": [{"name": "something else", "idx": 1}]}, LABELS)
    with pytest.raises(UserError, match="segments have the name of no structure"):
        check_label(image, label, values)


# ------------------------------------------------------------------------------------------------- kills and disks


@pytest.mark.slow
def test_what_was_submitted_before_a_kill_is_learned_once(service, tmp_path, monkeypatch):
    image, label = write_study(tmp_path)
    service.ask("study", image, {"roi": ROI})
    submit(service, image, label)
    learner, calls = service.parts.learners["disc"], []

    def killed(pending, *arguments, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(pending.key)
        return OnlineLearner.correct(learner, pending, *arguments, **options)

    monkeypatch.setattr(learner, "correct", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(service)
    again = OnlineService(make_parts(tmp_path / "learners"), tmp_path)
    assert len(corrections(again)) == 2
    again.start()
    while again.inbox.count():
        again.wake()
    again.stop()
    assert len({entry.key for entry in corrections(again)}) == len(corrections(again)) == 3


def test_a_full_disk_keeps_the_submission(service, tmp_path, monkeypatch):
    image, label = write_study(tmp_path)
    service.ask("study", image, {"roi": ROI})
    submit(service, image, label)

    def full(*arguments, **options):
        raise UserError("cannot write: no space left") from OSError(28, "No space left on device")

    monkeypatch.setattr(service.parts.learners["disc"], "correct", full)
    with pytest.raises(UserError, match="no space left"):
        learn(service)
    assert service.inbox.count() == 1
    monkeypatch.undo()
    learn(service)
    assert len(corrections(service)) == 3


def test_half_a_submission_does_not_count(tmp_path):
    inbox = Inbox(tmp_path)
    (tmp_path / "inbox" / ".00000000000000000001-aaaaaa").mkdir()
    assert inbox.count() == 0
    assert inbox.waiting() == []


def test_one_process_learns_in_a_folder(tmp_path):
    held = take_lock(tmp_path)
    assert held is not None
    assert take_lock(tmp_path, patience=0) is None
    held.close()
    again = take_lock(tmp_path)
    assert again is not None
    again.close()


def test_the_label_is_not_read_to_answer(service, tmp_path):
    image, label = write_study(tmp_path)
    with_label, _ = service.ask("study", image, {"roi": ROI})
    label.write_bytes(b"poison")
    without, _ = service.ask("study", image, {"roi": ROI})
    np.testing.assert_array_equal(with_label, without)


def test_another_sam_is_refused(service, tmp_path):
    learner = service.parts.learners["disc"]
    with pytest.raises(UserError, match="was learned beside the SAM with sha256 sam1"):
        OnlineLearner(AuxiliaryFusion(replace(learner.method.settings)), tmp_path / "learners" / "disc", "other")
