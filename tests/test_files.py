"""Checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path

import monai_ext
from monai_ext.files import hash_source, sha256_of, source_sha256


def test_checksum_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_the_source_counts_as_a_whole(tmp_path):
    keys = []
    for name, text in (("losses/a.py", "x"), ("losses/a.py", "y"), ("losses/b.py", "y"), ("notes.txt", "z")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        keys.append(hash_source(tmp_path))
    (tmp_path / "losses" / "b.py").rename(tmp_path / "losses" / "c.py")
    keys.append(hash_source(tmp_path))
    assert len(set(keys)) == 4
    assert keys[2] == keys[3], "not Python"


def test_the_source_is_that_of_the_package():
    assert source_sha256() == hash_source(Path(monai_ext.__file__).parent)
