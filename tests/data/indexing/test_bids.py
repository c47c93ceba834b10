from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.images import read_label
from monai_ext.errors import UserError


@pytest.fixture
def study(tmp_path: Path, shapes: Any) -> Path:
    """sub-01 with two sessions (the second without label), sub-02 without sessions."""
    root = tmp_path / "study"
    manual = root / "derivatives" / "manual"
    for session in ("ses-01", "ses-02"):
        shapes.save_volume(root / "sub-01" / session / "anat" / f"sub-01_{session}_T1w.nii.gz")
    shapes.save_volume(
        manual / "sub-01" / "ses-01" / "anat" / "sub-01_ses-01_space-orig_desc-lesion_mask.nii.gz", shapes.rings((1,))
    )
    shapes.save_volume(root / "sub-02" / "anat" / "sub-02_T1w.nii.gz")
    shapes.save_volume(manual / "sub-02" / "anat" / "sub-02_dseg.nii.gz", shapes.rings((1,), 1.0))
    (root / "participants.tsv").write_text("participant_id\tage\tgroup\nsub-01\t64\tpatient\nsub-02\t55\tn/a\n")
    return root


def test_sessions_are_visits(study: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    datalist, report = indexed("bids", study, labels={"lesion": 1})
    assert [(case.case, case.patient, case.visit, case.label is None) for case in datalist.cases] == [
        ("sub-01_ses-01_T1w", "sub-01", 1, False),
        ("sub-01_ses-02_T1w", "sub-01", 2, True),
        ("sub-02_T1w", "sub-02", None, False),
    ]
    assert np.array_equal(read_label(datalist.cases[2].label), shapes.rings((1,), 1.0))
    assert "3 cases, 2 patients" in report


def test_only_the_group_is_taken_from_the_participants(
    study: Path, indexed: Callable[..., Any], tmp_path: Path
) -> None:
    datalist, _ = indexed("bids", study, labels={"lesion": 1})
    assert [case.extra.get("group") for case in datalist.cases] == ["patient", "patient", None]
    assert "64" not in (tmp_path / "list.json").read_text()


def test_dates_of_the_sessions_count_if_all_are_there(study: Path, indexed: Callable[..., Any]) -> None:
    table = study / "sub-01" / "sub-01_sessions.tsv"
    table.write_text("session_id\tacq_time\nses-01\t2021-03-01T09:30:00\nses-02\t2020-11-27T10:00:00\n")
    visits = [case.visit for case in indexed("bids", study, labels={"lesion": 1})[0].cases]
    assert visits == [datetime.date(2021, 3, 1), datetime.date(2020, 11, 27), None]
    table.write_text("session_id\tacq_time\nses-01\t2021-03-01\nses-02\tn/a\n")
    assert [case.visit for case in indexed("bids", study, labels={"lesion": 1})[0].cases] == [1, 2, None]


@pytest.mark.parametrize(
    ("names", "visits"),
    [
        (["ses-20230415", "ses-20231001"], [datetime.date(2023, 4, 15), datetime.date(2023, 10, 1)]),
        (["ses-baseline", "ses-followup"], [0, 1]),
        (["ses-2", "ses-10"], [2, 10]),
    ],
)
def test_names_of_sessions_order_the_visits(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, names: list[str], visits: list[Any]
) -> None:
    for name in names:
        shapes.save_volume(tmp_path / "b" / "sub-1" / name / "anat" / f"sub-1_{name}_T1w.nii.gz")
    assert [case.visit for case in indexed("bids", tmp_path / "b", labels={"lesion": 1})[0].cases] == visits


def test_sessions_are_ordered_as_they_are_given(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    for name in ("ses-pre", "ses-post"):
        shapes.save_volume(tmp_path / "b" / "sub-1" / name / "anat" / f"sub-1_{name}_T1w.nii.gz")
    datalist, report = indexed("bids", tmp_path / "b", labels={"lesion": 1})
    assert {case.case: case.visit for case in datalist.cases} == {"sub-1_ses-pre_T1w": 0, "sub-1_ses-post_T1w": 1}
    assert report.count("the order is assumed to be pre,post") == 1
    datalist, report = indexed("bids", tmp_path / "b", labels={"lesion": 1}, sessions=("post", "pre"))
    assert {case.case: case.visit for case in datalist.cases} == {"sub-1_ses-pre_T1w": 1, "sub-1_ses-post_T1w": 0}
    assert "assumed" not in report


def test_a_label_that_names_a_contrast_serves_it_alone(study: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_volume(study / "sub-02" / "anat" / "sub-02_FLAIR.nii.gz")
    label = study / "derivatives" / "manual" / "sub-02" / "anat" / "sub-02_dseg.nii.gz"
    label.rename(label.with_name("sub-02_FLAIR_dseg.nii.gz"))
    cases = {case.case: case.label for case in indexed("bids", study, labels={"lesion": 1})[0].cases}
    assert cases["sub-02_T1w"] is None
    assert Path(cases["sub-02_FLAIR"]).name == "sub-02_FLAIR_dseg.nii.gz"


def test_a_label_in_the_space_of_a_contrast_serves_it_alone(
    study: Path, indexed: Callable[..., Any], shapes: Any
) -> None:
    shapes.save_volume(study / "sub-02" / "anat" / "sub-02_FLAIR.nii.gz")
    label = study / "derivatives" / "manual" / "sub-02" / "anat" / "sub-02_dseg.nii.gz"
    label.rename(label.with_name("sub-02_space-T1w_dseg.nii.gz"))
    datalist, report = indexed("bids", study, labels={"lesion": 1})
    cases = {case.case: case.label is None for case in datalist.cases}
    assert (cases["sub-02_T1w"], cases["sub-02_FLAIR"]) == (False, True)
    assert "1 sessions have several images, which are no visits" in report


def test_masks_for_defacing_are_no_images(study: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_volume(study / "sub-02" / "anat" / "sub-02_mod-T1w_defacemask.nii.gz")
    datalist, report = indexed("bids", study, labels={"lesion": 1})
    assert len(datalist.cases) == 3
    assert "several images" not in report


def test_runs_keep_apart(study: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    for run in ("run-1", "run-2"):
        shapes.save_volume(study / "sub-03" / "anat" / f"sub-03_{run}_T1w.nii.gz")
    shapes.save_volume(study / "derivatives" / "m" / "sub-03" / "anat" / "sub-03_run-2_dseg.nii.gz", shapes.rings((1,)))
    cases = {case.case: case.label is None for case in indexed("bids", study, labels={"lesion": 1})[0].cases}
    assert (cases["sub-03_run-1_T1w"], cases["sub-03_run-2_T1w"]) == (True, False)


def test_several_labels_are_chosen_by_pattern(study: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    folder = study / "derivatives" / "manual" / "sub-02" / "anat"
    shapes.save_volume(folder / "sub-02_label-oedema_mask.nii.gz", shapes.rings((1,)))
    datalist, report = indexed("bids", study, labels={"lesion": 1})
    assert "sub-02" not in {case.patient for case in datalist.cases}
    assert "sub-02_T1w.nii.gz: has several label maps" in report
    datalist, _ = indexed("bids", study, labels={"lesion": 1}, label_pattern=re.compile("oedema|desc-lesion"))
    assert Path(datalist.cases[-1].label).name == "sub-02_label-oedema_mask.nii.gz"


def test_images_are_chosen_by_pattern(study: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_volume(study / "sub-02" / "anat" / "sub-02_T2w.nii.gz")
    datalist, _ = indexed("bids", study, labels={"lesion": 1}, image_pattern=re.compile("T2w"))
    assert [case.case for case in datalist.cases] == ["sub-02_T2w"]


def test_another_folder_is_refused(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"there is no sub-\*/\[ses-\*/\]anat"):
        indexed("bids", tmp_path)


@pytest.mark.parametrize(
    "linked", ["sub-01", "sub-01/ses-02", "sub-01/ses-02/anat", "derivatives", "derivatives/manual"]
)
def test_linked_folders_are_followed(study: Path, indexed: Callable[..., Any], tmp_path: Path, linked: str) -> None:
    before = [(case.case, case.visit, case.label) for case in indexed("bids", study, labels={"lesion": 1})[0].cases]
    (study / linked).rename(tmp_path / "far")
    (study / linked).symlink_to(tmp_path / "far")
    (tmp_path / "far" / "circle").symlink_to(study)
    after = [(case.case, case.visit, case.label) for case in indexed("bids", study, labels={"lesion": 1})[0].cases]
    assert after == before


def test_tables_that_excel_saved_are_read(study: Path, indexed: Callable[..., Any]) -> None:
    table = study / "sub-01" / "sub-01_sessions.tsv"
    table.write_bytes(b"\xef\xbb\xbfsession_id\tacq_time\r\nses-01\t2021-03-01\r\nses-02\t2020-11-27\r\n")
    visits = [case.visit for case in indexed("bids", study, labels={"lesion": 1})[0].cases]
    assert visits[:2] == [datetime.date(2021, 3, 1), datetime.date(2020, 11, 27)]
    table.write_text("session_id,acq_time\nses-01,2021-03-01\n")
    with pytest.raises(UserError, match=r"sessions\.tsv: its columns are separated by commas; .* tabs"):
        indexed("bids", study, labels={"lesion": 1})
