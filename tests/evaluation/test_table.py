"""metrics.csv: what is written reads back, and what is no such table is refused with a sentence."""

from __future__ import annotations

import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.table import COLUMNS, read_rows, write_rows


def test_rows_read_back_exactly(make_row, tmp_path):
    rows = [
        make_row("ä, b\nc", "RV", 1 / 3),
        make_row("x", "RV", None),
        make_row("y", "RV", 1e-300, reference="a+b"),
    ]
    write_rows(tmp_path / "new" / "metrics.csv", rows)
    assert read_rows(tmp_path / "new" / "metrics.csv") == rows
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.csv"]


def test_text_of_the_table(make_row, tmp_path):
    write_rows(tmp_path / "metrics.csv", [make_row("p1", "RV", 0.5), make_row("p2", "RV", None)])
    assert (tmp_path / "metrics.csv").read_bytes() == (
        b"task,algorithm,case,patient,visit,reference,fold,run,label,metric,value,status\n"
        b"toy,method,p1,p1,1,,,0,RV,dice,0.5,ok\n"
        b"toy,method,p2,p2,1,,,0,RV,dice,,both_empty\n"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "not a metrics.csv"),
        (b"case,dice\na,1\n", "not a metrics.csv"),
        (b"\xff\xfe", "not a table of text"),
        (",".join(COLUMNS).encode() + b"\na,b\n", "line 2 has 2 cells"),
        (",".join(COLUMNS).encode() + b"\nt,a,c,,,,,0,RV,dice,nan,ok\n", "not a number"),
        (",".join(COLUMNS).encode() + b"\nt,a,c,,,,,0,RV,dice,,ok\n", "no value at status ok"),
        (",".join(COLUMNS).encode() + b"\nt,a,c,,,,,0,RV,dice,1,fine\n", "unknown status 'fine'"),
        (",".join(COLUMNS).encode() + b"\nt,a,c,,,,,0,RV,dice,1,both_empty\n", "at status both_empty, which has none"),
        (",".join(COLUMNS).encode() + b"\nt,a,c,,,,,0,RV,dice,1,ok\nt,a,c,,,,,0,RV,dice,1,ok\n", "several rows"),
    ],
)
def test_other_files_are_refused(text, sentence, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(text)
    with pytest.raises(UserError, match=sentence):
        read_rows(tmp_path / "metrics.csv")


def test_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        read_rows(tmp_path / "nowhere.csv")


def test_a_case_without_patient_is_its_own_cluster(make_row):
    assert make_row("p1", "RV", 0.5, patient="").cluster == "p1"
    assert make_row("p1", "RV", 0.5, patient="P").cluster == "P"


def test_a_table_that_excel_saved_is_read(make_row, tmp_path):
    path = tmp_path / "metrics.csv"
    write_rows(path, [make_row("p1", "RV", 0.5)])
    expected, content = read_rows(path), path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert read_rows(path) == expected
    path.write_bytes(content.replace(b",", b";"))
    with pytest.raises(UserError, match=r"metrics\.csv: its columns are separated by semicolons; save it with commas"):
        read_rows(path)
