from __future__ import annotations

import re
from pathlib import Path

import pytest

from monai_ext.data.text import read_json, read_table, read_text
from monai_ext.errors import UserError

PACKAGE = Path(__file__).parents[2] / "monai_ext"
BOM = b"\xef\xbb\xbf"
ROWS = [["case", "dice"], ["p1, left", "0.5"], ["p2", ""]]


@pytest.mark.parametrize("start", [b"", BOM])
def test_text_with_and_without_a_byte_order_mark(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(start + "Größe".encode())
    assert read_text(tmp_path / "a.txt") == "Größe"
    (tmp_path / "a.json").write_bytes(start + b'{\r\n"a": 1\r\n}\r\n')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("start", [b"", BOM, BOM + b"sep=,\r\n"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("end", [b"", b"\n\n", b",\r\n,\r\n"])
def test_tables_as_programs_save_them(tmp_path: Path, start: bytes, newline: bytes, end: bytes) -> None:
    lines = [b"case,dice", b'"p1, left",0.5', b"p2,", b""]
    (tmp_path / "t.csv").write_bytes(start + newline.join(lines) + end)
    assert read_table(tmp_path / "t.csv", "name another") == ROWS


@pytest.mark.parametrize(
    ("content", "separator", "sentence"),
    [
        (b"case;dice\r\np1;0,5\r\n", ",", "separated by semicolons; save it with commas between the columns"),
        (b"sep=;\r\ncase;dice\r\n", ",", "separated by semicolons; save it with commas"),
        (b"case\tdice\n", ",", "separated by tabs; save it with commas"),
        (b"case,dice\n", "\t", "separated by commas; save it with tabs"),
        ("case,dice\n".encode("utf-16"), ",", "not a table of text .* name another"),
        (b'case,dice\n"p1,0.5\n', ",", "not a table of text .* name another"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, content: bytes, separator: str, sentence: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"t\.csv: .*{sentence}"):
        read_table(tmp_path / "t.csv", "name another", separator)


def test_an_empty_table_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(BOM)
    assert read_table(tmp_path / "t.csv", "name another") == []


NOT_EDITED = {
    "evaluation/record.py": 1,  # /proc/cpuinfo
    "evaluation/report/page.py": 1,  # the package's own style sheet
    "evaluation/report/follow_up.py": 1,  # the same
    "label/server.py": 3,  # the log of a process, answers of a server
    "data/indexing/retouch.py": 1,  # headers of MetaImage, Latin-1
    "data/indexing/acdc.py": 1,  # Info.cfg, of which bytes that are no text are passed over
}


def test_text_is_read_in_one_way() -> None:
    own = re.compile(r"\.read_text\(|csv\.(?:DictReader|reader)\(|json\.load\(|json(?:\.loads)?\([^\n]*read_bytes")
    found = {
        path.relative_to(PACKAGE).as_posix(): len(own.findall(path.read_text(encoding="utf-8")))
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "data" / "text.py"
    }
    assert {name: count for name, count in found.items() if count} == NOT_EDITED
