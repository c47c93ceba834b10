from __future__ import annotations

import json

import pytest

from monai_ext.data.doctor import Finding, warn_and_stop
from monai_ext.data.doctor.examine import all_checks
from monai_ext.data.doctor.report import describe, to_json, to_text, verdict
from monai_ext.errors import UserError

SUMMARY = {
    **{"dataset": "toy", "cases": 30, "patients": 1, "labels": 30, "scribbles": 0, "files": 60},
    **{"label_maps_read": 30, "structures": {"lesion": 29}},
}


def finding(level: str, case: str = "a", code: str = "sheared", fix: str = "resample it") -> Finding:
    return Finding(code, 4, level, case, f"/data/{case}.nii", f"image {case}.nii is sheared", fix)


def test_text_has_levels_cases_and_the_verdict():
    text = to_text(SUMMARY, [finding("error"), finding("note", "b", "one_slice")], 1.26)
    assert text.splitlines() == [
        "toy: 30 cases, 1 patient, 30 label maps, 0 scribbles; 60 files in 1.3 s",
        "of 30 label maps: lesion in 29",
        "",
        "errors, which stop a run:",
        "  sheared (4)",
        "    - case a: image a.nii is sheared",
        "    > resample it",
        "",
        "notes:",
        "  one_slice (4)",
        "    - case b: image b.nii is sheared",
        "    > resample it",
        "",
        "something stops a run: 1 error, 0 warnings, 1 note",
    ]


def test_many_findings_of_one_check_are_counted_unless_all_are_asked_for():
    many = [finding("error", f"c{number}") for number in range(25)]
    assert "and 5 more (--all lists them)" in to_text(SUMMARY, many, 0)
    assert to_text(SUMMARY, many, 0).count("- case") == 20
    assert to_text(SUMMARY, many, 0, show_all=True).count("- case") == 25


def test_different_fixes_stand_with_their_findings():
    text = to_text(SUMMARY, [finding("warning"), finding("warning", "b", fix="copy it again")], 0)
    assert "image a.nii is sheared; resample it" in text
    assert "image b.nii is sheared; copy it again" in text


def test_json_holds_everything():
    content = json.loads(to_json(SUMMARY, [finding("warning")], 1.234))
    assert content["ok"] is True
    assert content["summary"] == {**SUMMARY, "seconds": 1.23}
    assert content["findings"] == [vars(finding("warning"))]
    assert json.loads(to_json(SUMMARY, [finding("error")], 0))["ok"] is False


def test_verdict():
    assert verdict([]) == "nothing stops a run: 0 errors, 0 warnings, 0 notes"


def test_every_check_is_described():
    text = describe(all_checks())
    for check in all_checks():
        assert check.doc.strip()
        assert f"\n{check.code} (" in f"\n{text}"
    assert max(map(len, text.splitlines())) <= 120


def test_codes_are_unique():
    codes = [check.code for check in all_checks()]
    assert len(codes) == len(set(codes))


def test_a_run_stops_at_the_first_error():
    with pytest.raises(UserError, match=r"^/data/a\.nii: case a: image a\.nii is sheared; resample it$"):
        warn_and_stop([finding("error"), finding("error", "b")])


def test_a_run_is_warned_once_a_check(capsys):
    warn_and_stop([*(finding("warning", case) for case in "abc"), finding("note", "d")])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "warning: /data/a.nii: case a: image a.nii is sheared; resample it (and 2 more: "
        "python -m monai_ext.data.doctor lists them)"
    ]
