"""Checksums."""

from __future__ import annotations

import hashlib

from monai_ext.files import sha256_of


def test_checksum_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
