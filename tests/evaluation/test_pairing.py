"""Tables side by side, and the refusal of those that cannot be paired."""

from __future__ import annotations

import numpy as np
import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.pairing import better_direction, read_methods
from monai_ext.evaluation.table import write_rows


@pytest.fixture
def three(make_row, write_tables):
    """Label a: all have a value of p1 and p3; label b: only of p1. Of p2 nobody has any."""
    values = {
        "one": {("p1", "a"): 0.1, ("p1", "b"): 0.3, ("p2", "a"): None, ("p3", "a"): 0.5, ("p3", "b"): None},
        "two": {("p1", "a"): 0.2, ("p1", "b"): 0.4, ("p2", "a"): None, ("p3", "a"): 0.6, ("p3", "b"): None},
        "six": {("p1", "a"): 0.3, ("p1", "b"): 0.5, ("p2", "a"): None, ("p3", "a"): 0.7, ("p3", "b"): 0.0},
    }
    return write_tables(
        {
            name: [
                make_row(case, label, value, algorithm=name, **({"status": "ref_empty"} if value == 0 else {}))
                for (case, label), value in of_name.items()
            ]
            for name, of_name in values.items()
        }
    )


def test_a_value_counts_where_all_methods_have_one(three):
    (measured,) = read_methods(three, ["dice"])
    of_a, of_b, macro = measured.columns()
    assert measured.methods == ("one", "two", "six")
    assert of_a.values.tolist() == [[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]
    assert [measured.patients[number] for number in of_a.patients] == ["p1", "p3"]
    assert (len(of_a.undefined), of_a.one_sided) == (1, 0)
    assert of_b.values.tolist() == [[0.3, 0.4, 0.5]]
    assert (len(of_b.undefined), of_b.one_sided) == (1, 1)
    assert macro.label == "macro"
    assert macro.values == pytest.approx(np.array([[0.2, 0.3, 0.4], [0.5, 0.6, 0.7]]))


def test_two_of_the_methods(three):
    (measured,) = read_methods(three, ["dice"])
    assert measured.columns([2, 0])[0].values.tolist() == [[0.3, 0.1], [0.7, 0.5]]


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("dice", "higher"),
        ("dice_slice_mean", "higher"),
        ("nsd_2mm", "higher"),
        ("hd95_mm", "lower"),
        ("hd95_px", "lower"),
        ("volume_error_ml", "nearer_zero"),
        ("volume_ml", ""),
        ("patience", ""),
    ],
)
def test_direction_of_better(metric, direction):
    assert better_direction(metric) == direction


def test_one_table_is_refused(three):
    with pytest.raises(UserError, match="two or more"):
        read_methods(three[:1], ["dice"])


def test_different_cases_are_refused_by_name(make_row, write_tables):
    tables = write_tables(
        {
            name: [make_row(f"{letter}{number}", "a", 0.5, algorithm=name) for number in range(5)]
            for name, letter in (("one", "p"), ("two", "q"))
        }
    )
    with pytest.raises(UserError, match=r"only in .*one.*: p0, p1, p2, \.\.\.; only in .*two.*: q0, q1, q2, \.\.\."):
        read_methods(tables, ["dice"])


def test_a_missing_label_is_named(make_row, write_tables):
    tables = write_tables(
        {
            name: [make_row("p1", label, 0.5, algorithm=name) for label in labels]
            for name, labels in (("one", "ab"), ("two", "a"))
        }
    )
    with pytest.raises(UserError, match=r"p1 \(task toy, run 0, label b\)"):
        read_methods(tables, ["dice"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([("p1", "method", "dice"), ("p1", "method", "dice")], "several rows"),
        ([("p1", "method", "dice"), ("p2", "other", "dice")], "2 algorithms"),
        ([("p1", "method", "hd95_mm")], "no rows of the metric dice"),
        ([], "no rows of the metric dice"),
    ],
)
def test_tables_that_cannot_be_paired_are_refused(values, sentence, make_row, tmp_path):
    rows = [make_row(case, "a", 0.5, algorithm=name, metric=metric) for case, name, metric in values]
    paths = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for path in paths:
        write_rows(path, rows)
    with pytest.raises(UserError, match=sentence):
        read_methods(paths, ["dice"])


def test_a_table_given_twice_is_refused(three):
    with pytest.raises(UserError, match="given twice"):
        read_methods([three[0], three[1], three[0].parent / ".." / "one" / "metrics.csv"], ["dice"])


@pytest.mark.parametrize(("status", "refused"), [("both_empty", True), ("ref_empty", True), ("missing", False)])
def test_other_reference_masks_are_refused(status, refused, make_row, write_tables):
    """Statuses tell whether the reference has a label: both methods must have been scored against the same one."""
    value = None if status == "both_empty" else 0.0
    tables = write_tables(
        {
            "one": [make_row("p1", "a", 0.5, algorithm="one")],
            "two": [make_row("p1", "a", value, algorithm="two", status=status)],
        }
    )
    if refused:
        with pytest.raises(UserError, match=r"case p1: its reference mask holds label a in .*one.*, but not in .*two"):
            read_methods(tables, ["dice"])
    else:
        assert len(read_methods(tables, ["dice"])) == 1


def test_a_case_of_another_patient_is_refused(make_row, write_tables):
    tables = write_tables({name: [make_row("scan", "a", 0.5, algorithm=name, patient=name)] for name in ("one", "two")})
    with pytest.raises(UserError, match=r"case scan is of patient one in .* but of two in"):
        read_methods(tables, ["dice"])
