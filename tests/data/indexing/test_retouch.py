from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.images import read_geometry, read_image, read_label
from monai_ext.data.indexing.retouch import read_metaimage
from monai_ext.errors import UserError

SHAPE = (12, 20, 4)
SPACING = (0.0117, 0.002, 0.0472)


def save_metaimage(path: Path, array: np.ndarray, **changes: str | None) -> Path:
    """Write [X, Y, Z] as MetaImage; ``changes`` replace header fields, None removes one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT"}
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": " ".join(map(str, SPACING)),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": kinds[array.dtype.str[1:]],
        "ElementDataFile": f"{path.stem}.raw",
    }
    header |= {key: value for key, value in changes.items() if value is not None}
    lines = [f"{key} = {value}" for key, value in header.items() if changes.get(key, "") is not None]
    path.write_text("\n".join(lines) + "\n")
    data = array.tobytes(order="F")
    path.with_suffix(".raw").write_bytes(zlib.compress(data) if header.get("CompressedData") == "True" else data)
    return path


@pytest.fixture
def scan() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60000, SHAPE).astype("<u2")


@pytest.fixture
def tree(tmp_path: Path, scan: np.ndarray, shapes: Any) -> Path:
    for folder, name in (("RETOUCH-TrainingSet-Cirrus", "TRAIN001"), ("RETOUCH-TestSet-Topcon", "TEST029")):
        save_metaimage(tmp_path / "oct" / folder / name / "oct.mhd", scan)
    reference = shapes.rings((3, 2, 1), 0.0, SHAPE).astype("u1")
    save_metaimage(tmp_path / "oct" / "RETOUCH-TrainingSet-Cirrus" / "TRAIN001" / "reference.mhd", reference)
    return tmp_path / "oct"


def test_volumes_keep_values_and_spacing(
    tree: Path, indexed: Callable[..., Any], scan: np.ndarray, shapes: Any
) -> None:
    datalist, report = indexed("retouch", tree)
    test, train = datalist.cases
    assert (train.case, train.split, train.extra["vendor"]) == ("TRAIN001", "train", "Cirrus")
    assert (test.case, test.split, test.label) == ("TEST029", "test", None)
    assert np.array_equal(read_image(train.image), scan)
    assert np.array_equal(read_label(train.label), shapes.rings((3, 2, 1), 0.0, SHAPE))
    assert np.allclose(read_geometry(train.image).spacing, SPACING, rtol=1e-4)
    assert "MetaImage was converted" in report


def test_the_frame_turns_from_lps_to_ras(tmp_path: Path, scan: np.ndarray) -> None:
    """Array axis 1 runs along y, 2 along z, 3 along x of the patient (LPS), from (10, -20, 30)."""
    path = save_metaimage(tmp_path / "a.mhd", scan, TransformMatrix="0 1 0 0 0 1 1 0 0", Offset="10 -20 30")
    _, affine = read_metaimage(path)
    step_x, step_y, step_z = SPACING
    lps = np.array([10 + 3 * step_z, -20 + 1 * step_x, 30 + 2 * step_y])  # of voxel (1, 2, 3)
    assert np.allclose(affine @ [1, 2, 3, 1], [-lps[0], -lps[1], lps[2], 1])


def test_compressed_and_big_endian_data_are_read(tmp_path: Path, scan: np.ndarray) -> None:
    packed, _ = read_metaimage(save_metaimage(tmp_path / "a.mhd", scan, CompressedData="True"))
    swapped, _ = read_metaimage(save_metaimage(tmp_path / "b.mhd", scan.byteswap(), BinaryDataByteOrderMSB="True"))
    assert np.array_equal(packed, scan)
    assert np.array_equal(swapped, scan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DimSize": "100000 100000 100000"}, "claims the shape"),
        ({"DimSize": "12 20 5"}, "holds 1920 bytes, the header needs 2400"),
        ({"ElementType": "MET_OTHER"}, "header cannot be read"),
        ({"ElementSpacing": None}, "header cannot be read"),
        ({"ElementDataFile": "../../a.raw"}, "must be a file beside the header"),
        ({"ElementDataFile": "LOCAL"}, "must be a file beside the header"),
        ({"ElementDataFile": "missing.raw"}, "cannot be read"),
        ({"ElementNumberOfChannels": "3"}, "several channels"),
    ],
)
def test_headers_that_cannot_be_true_are_refused(
    tmp_path: Path, scan: np.ndarray, changes: dict[str, str | None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_metaimage(save_metaimage(tmp_path / "a.mhd", scan, **changes))


def test_a_damaged_scan_is_skipped(tree: Path, indexed: Callable[..., Any]) -> None:
    (tree / "RETOUCH-TestSet-Topcon" / "TEST029" / "oct.raw").write_bytes(b"short")
    datalist, report = indexed("retouch", tree)
    assert [case.case for case in datalist.cases] == ["TRAIN001"]
    assert "oct.raw holds 5 bytes" in report
