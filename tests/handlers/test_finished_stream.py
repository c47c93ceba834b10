"""The longest finished beginning of a stream is kept, and nothing behind it."""

from __future__ import annotations

import pytest

from monai_ext.evaluation.case_record import record_path
from monai_ext.handlers.finished_stream import FinishedStream


@pytest.fixture
def cases(tmp_path):
    found = []
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name)
        found.append({"case": name, "patient": name, "image": str(tmp_path / f"{name}.txt")})
    return found


def left(tmp_path, cases, **settings) -> list[str]:
    return [case["case"] for case in FinishedStream(tmp_path / "out", cases, settings).own()]


@pytest.fixture
def finished(tmp_path, cases) -> FinishedStream:
    stream = FinishedStream(tmp_path / "out", cases, {})
    for case in cases:
        record = stream.record(case["case"])
        record.add_rows("stream.csv", ("case",), [[case["case"]]])
        record.write(tmp_path / "out")
    return stream


def test_nothing_is_left_of_a_finished_stream(finished, tmp_path, cases):
    assert left(tmp_path, cases) == []
    last = FinishedStream(tmp_path / "out", cases, {}).last()
    assert last is not None
    assert last.case == "d"


def test_a_missing_record_leaves_all_that_follow(finished, tmp_path, cases):
    record_path(tmp_path / "out", "b").unlink()
    assert left(tmp_path, cases) == ["b", "c", "d"]
    last = FinishedStream(tmp_path / "out", cases, {}).last()
    assert last is not None
    assert last.case == "a"


def test_a_changed_image_leaves_it_and_all_that_follow(finished, tmp_path, cases):
    (tmp_path / "c.txt").write_text("other")
    assert left(tmp_path, cases) == ["c", "d"]


def test_another_order_begins_where_it_differs(finished, tmp_path, cases):
    a, b, c, d = cases
    assert left(tmp_path, [a, c, b, d]) == ["c", "b", "d"]
    assert left(tmp_path, [b, a, c, d]) == ["b", "a", "c", "d"]


def test_other_settings_leave_all(finished, tmp_path, cases):
    assert left(tmp_path, cases, batch=2) == ["a", "b", "c", "d"]


def test_an_empty_beginning_has_no_last_record(tmp_path, cases):
    assert FinishedStream(tmp_path / "out", cases, {}).last() is None
