from __future__ import annotations

from pathlib import Path

import pytest

from monai_ext.data.indexing.sessions import SessionOrder, order_sessions
from monai_ext.errors import UserError


def write(path: Path, *rows: str) -> None:
    """Write a table; its cells are given with blanks between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row.replace(" ", "\t") + "\n" for row in rows))


def order(root: Path, *names: str, given: list[str] | None = None) -> tuple[list[str], SessionOrder]:
    """Return the sessions of sub-1 in their order."""
    found = order_sessions(root, {"1": names}, given)
    return sorted(names, key=lambda name: found.visits["1", name]), found  # type: ignore[arg-type]


TABLE = "sub-1/sub-1_sessions.tsv"


@pytest.mark.parametrize(
    "rows",
    [
        ["session_id acq_time", "ses-pre 2021-03-01T09:30:00", "ses-post 2020-11-27"],
        ["session_id acq_time", "pre 1867-03-01T09:30:00", "post 1867-02-01"],
        ["session_id age scan_date", "ses-pre 60 2021-03-01", "ses-post 60 2020-11-27"],
    ],
)
def test_dates_of_the_sessions_table(tmp_path: Path, rows: list[str]) -> None:
    write(tmp_path / TABLE, *rows)
    names, found = order(tmp_path, "pre", "post")
    assert names == ["post", "pre"]
    assert all(isinstance(visit, str) for visit in found.visits.values())
    assert found.notes == []


def test_one_table_for_all_subjects(tmp_path: Path) -> None:
    rows = ("participant_id session_id acq_time", "sub-1 ses-a 2021-01-02", "sub-1 ses-b 2021-01-01")
    write(tmp_path / "sessions.tsv", *rows, "sub-2 ses-a 2000-01-01")
    assert order(tmp_path, "a", "b")[0] == ["b", "a"]


def test_sessions_of_one_day_are_ordered_by_the_time(tmp_path: Path) -> None:
    write(tmp_path / TABLE, "session_id acq_time", "ses-a 2021-03-01T15:00:00", "ses-b 2021-03-01T09:30:00.5")
    names, found = order(tmp_path, "a", "b")
    assert (names, sorted(found.visits.values())) == (["b", "a"], [0, 1])
    write(tmp_path / TABLE, "session_id acq_time", "ses-a 2021-03-01", "ses-b 2021-03-01")
    assert order(tmp_path, "a", "b")[1].notes


def test_dates_of_the_scans(tmp_path: Path) -> None:
    for name, dates in (("a", ("2021-02-01T10:00:00", "2021-02-03")), ("b", ("2021-02-02", "n/a"))):
        scans = [
            f"anat/sub-1_ses-{name}_{kind}.nii.gz {date}" for kind, date in zip(("T1w", "T2w"), dates, strict=True)
        ]
        write(tmp_path / f"sub-1/ses-{name}/sub-1_ses-{name}_scans.tsv", "filename acq_time", *scans)
    names, found = order(tmp_path, "b", "a")
    assert (names, found.notes) == (["a", "b"], [])
    assert found.visits["1", "a"] == "2021-02-01"


@pytest.mark.parametrize(
    ("names", "visits"),
    [
        (["M12", "M00"], {"M00": 0, "M12": 12}),
        (["10", "2"], {"2": 2, "10": 10}),
        (["wk10", "WK2"], {"WK2": 2, "wk10": 10}),
        (["12months", "6months"], {"6months": 6, "12months": 12}),
        (["20240301", "20231001"], {"20231001": "2023-10-01", "20240301": "2024-03-01"}),
    ],
)
def test_numbers_in_the_names(tmp_path: Path, names: list[str], visits: dict[str, object]) -> None:
    found = order_sessions(tmp_path, {"1": names})
    assert {name: visit for (_, name), visit in found.visits.items()} == visits
    assert found.notes == []


def test_a_column_of_numbers_is_told(tmp_path: Path) -> None:
    write(tmp_path / TABLE, "session_id days_from_surgery weight", "ses-pre 40 71", "ses-post -3 70")
    names, found = order(tmp_path, "pre", "post")
    assert (names, len(found.notes)) == (["post", "pre"], 1)
    assert "'days_from_surgery'" in found.notes[0]
    write(tmp_path / TABLE, "session_id days age", "ses-pre 40 60", "ses-post 3 61")  # they disagree
    assert "names" in order(tmp_path, "pre", "post")[1].notes[0]


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["post", "pre"], ["pre", "post"]),
        (["followup", "baseline"], ["baseline", "followup"]),
        (["postop2", "postop10", "intraop", "preop"], ["preop", "intraop", "postop2", "postop10"]),
        (["M12", "M06", "screening"], ["screening", "M06", "M12"]),
        (["beta", "alpha"], ["alpha", "beta"]),
        (["post15012024", "pre01022024"], ["pre01022024", "post15012024"]),
    ],
)
def test_the_order_of_mere_names_is_told(tmp_path: Path, names: list[str], ordered: list[str]) -> None:
    given, found = order(tmp_path, *names)
    assert given == ordered
    assert [",".join(ordered) in note for note in found.notes] == [True]


def test_one_session_needs_no_order(tmp_path: Path) -> None:
    assert order(tmp_path, "pre")[1] == SessionOrder({("1", "pre"): 0}, [])


def test_the_given_order_goes_before_all_else(tmp_path: Path) -> None:
    write(tmp_path / TABLE, "session_id acq_time", "ses-pre 2021-03-01", "ses-post 2020-11-27")
    assert order(tmp_path, "post", "pre", given=["ses-pre", "post"])[0] == ["pre", "post"]
    with pytest.raises(UserError, match=r"sub-1 has the session 'pre', which is not named; .* pre,post"):
        order(tmp_path, "post", "pre", given=["post"])
    with pytest.raises(UserError, match="'mid' is a session of no subject"):
        order(tmp_path, "post", "pre", given=["pre", "mid", "post"])
    with pytest.raises(UserError, match="'pre' is named twice"):
        order(tmp_path, "post", "pre", given=["pre", "pre", "post"])
