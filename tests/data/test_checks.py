from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import monai_ext.data.checks as checks
from monai_ext.data.checks import (
    check_affine,
    check_image,
    check_label,
    check_pairs,
    check_same_grid,
    count_values,
    grid_difference,
    grids_overlap,
)
from monai_ext.data.images import Geometry, read_geometry
from monai_ext.errors import UserError

LABELS = {"RV": 1, "LV": 3}


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    """A sound pair: two volumes of random tissue with both structures."""
    for name in ("reference", "target"):
        save_image(tmp_path / f"{name}.nii.gz")
        save_label(tmp_path / f"{name}_label.nii.gz")
    return {
        "case": "t",
        "image": str(tmp_path / "target.nii.gz"),
        "label": str(tmp_path / "target_label.nii.gz"),
        "reference": ["r"],
        "reference_image": [str(tmp_path / "reference.nii.gz")],
        "reference_label": [str(tmp_path / "reference_label.nii.gz")],
    }


def affine(**changes: float) -> np.ndarray:
    """1.5 x 1.5 x 8 mm, with entries changed by name: a01=0.1 sets row 0, column 1."""
    matrix = np.diag([1.5, 1.5, 8.0, 1.0])
    for name, value in changes.items():
        matrix[int(name[1]), int(name[2])] = value
    return matrix


def save_image(path: Path | str, matrix: np.ndarray | None = None, shape: tuple[int, ...] = (6, 5, 4)) -> None:
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(data, affine() if matrix is None else matrix), path)


def save_label(
    path: Path | str,
    values: tuple[float, ...] = (1, 3),
    matrix: np.ndarray | None = None,
    shape: tuple[int, ...] = (6, 5, 4),
) -> None:
    data = np.zeros(shape, np.float32)
    data.flat[: len(values)] = values
    nib.save(nib.Nifti1Image(data, affine() if matrix is None else matrix), path)


def test_sound_pairs_pass_with_a_progress_bar(pair: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    check_pairs([pair], LABELS, 4)
    shown = capsys.readouterr()
    assert "checking images: 100%" in shown.err
    assert "4/4" in shown.err
    assert shown.out == ""


def test_each_file_is_read_once(pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    for name in ("read_image", "read_label"):
        function = getattr(checks, name)
        monkeypatch.setattr(
            checks,
            name,
            lambda path, function=function, **options: (read.append(path), function(path, **options))[1],
        )
    check_pairs([pair, {**pair, "case": "u"}], LABELS)
    files = [pair["image"], pair["label"], *pair["reference_image"], *pair["reference_label"]]
    assert sorted(read) == sorted(files)


def refuse(pair: dict[str, Any], match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        check_pairs([pair], LABELS, 4, **options)
    assert "\n" not in str(caught.value)


def test_truncated_image(pair: dict[str, Any]) -> None:
    path = Path(pair["image"])
    path.write_bytes(path.read_bytes()[:-50])
    refuse(pair, r"case 't': .*target\.nii\.gz: the file is truncated")


def test_gzip_that_is_none(pair: dict[str, Any]) -> None:
    Path(pair["reference_label"][0]).write_bytes(b"plain")
    refuse(pair, r"case 'r': .*reference_label\.nii\.gz: not a sound gzip file")


def test_four_axes(pair: dict[str, Any]) -> None:
    save_image(pair["image"], shape=(6, 5, 4, 3))
    refuse(pair, r"case 't': .*target\.nii\.gz: has 4 axes")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_values_that_are_no_numbers(pair: dict[str, Any], value: float) -> None:
    nib.save(nib.Nifti1Image(np.array([[[0, value]]], np.float32), affine()), pair["image"])
    refuse(pair, r"case 't': .*target\.nii\.gz: 1 of 2 values are NaN or Inf")


def test_constant_image(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 7, np.uint8)).save(tmp_path / "flat.png")
    with pytest.raises(UserError, match=r"flat\.png: the image is constant \(every value is 7\)"):
        check_image(str(tmp_path / "flat.png"))


def test_shape_differs(pair: dict[str, Any]) -> None:
    save_label(pair["reference_label"][0], shape=(6, 5, 3))
    refuse(
        pair,
        "case 'r': .*label grid differs from image grid: shape 6 x 5 x 3, but 6 x 5 x 4 in .*reference.nii",
    )


@pytest.mark.parametrize(
    ("matrix", "match"),
    [
        (affine(a22=8.002), r"spacing \(1.5, 1.5, 8.002\), but \(1.5, 1.5, 8\)"),
        (affine(a03=0.002), r"origin \(0.002, 0, 0\), but \(0, 0, 0\)"),
        (affine(a00=-1.5), r"direction \(-1, 0, .*\), but \(1, 0, "),
    ],
)
def test_grid_differs(pair: dict[str, Any], matrix: np.ndarray, match: str) -> None:
    save_label(pair["label"], matrix=matrix)
    refuse(pair, rf"case 't': .*target_label\.nii\.gz: label grid differs from image grid: {match}")


def test_grid_within_tolerance(pair: dict[str, Any]) -> None:
    save_label(pair["label"], matrix=affine(a22=8.0005, a03=0.0005))
    check_pairs([pair], LABELS)


def in_unit(unit: str, length: float) -> Geometry:
    """A grid whose file has the given spacing, in the given unit."""
    return Geometry((4, 3, 2), np.diag([length] * 3 + [1]), (length,) * 3, False).read_in(unit)


@pytest.mark.parametrize(
    ("image", "label", "difference"),
    [
        (("micrometre", 500), ("micrometre", 500), None),
        (("micrometre", 500), ("unknown", 500), None),
        (("micrometre", 500), ("mm", 0.5), None),
        (("m", 0.002), ("unknown", 0.002), None),
        (("micrometre", 500), ("mm", 500), ("unit", "micrometre", "mm")),
        (("unknown", 500), ("micrometre", 500), ("unit", "unknown", "micrometre")),
        (("micrometre", 500), ("unknown", 0.5), ("spacing", "(0.5, 0.5, 0.5)", "(0.0005, 0.0005, 0.0005)")),
        (("micrometre", 2), ("micrometre", 2.5), ("spacing", "(0.002, 0.002, 0.002)", "(0.0025, 0.0025, 0.0025)")),
    ],
)
def test_grids_of_files_in_other_units(image, label, difference) -> None:
    found = grid_difference(in_unit(*image), in_unit(*label))
    assert difference == (found and (found.name, found.of_image, found.of_label))


def test_grid_of_a_frame_is_its_shape() -> None:
    frame, other = Geometry((4, 3), None, None, True), Geometry((3, 4), None, None, True)
    check_same_grid("a", frame, "b", frame)
    with pytest.raises(UserError, match="shape 3 x 4, but 4 x 3"):
        check_same_grid("a", frame, "b", other)


def test_sheared_affine(tmp_path: Path) -> None:
    save_image(tmp_path / "sheared.nii", affine(a01=0.1))
    with pytest.raises(UserError, match=r"sheared\.nii: the affine is sheared"):
        check_image(str(tmp_path / "sheared.nii"))


def test_zero_spacing(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header["srow_z"] = 0
    nib.save(type(image)(image.dataobj, None, image.header), tmp_path / "flat.nii")
    with pytest.raises(UserError, match=r"flat\.nii: the affine gives a spacing of 1 x 1 x 0 mm"):
        check_affine(str(tmp_path / "flat.nii"), read_geometry(tmp_path / "flat.nii"))


def test_rotated_affine_is_sound() -> None:
    c, s = np.cos(0.4), np.sin(0.4)
    matrix = np.eye(4)
    matrix[:2, :2] = [[c, -s], [s, c]]
    check_affine("v.nii", Geometry((2, 2, 2), matrix @ affine(), (1.5, 1.5, 8.0), False))


def test_label_values(tmp_path: Path) -> None:
    path = str(tmp_path / "label.nii")
    save_label(path, values=(1, 4, 3))
    assert check_label(path, {0, 1, 3, 4}).values == {0, 1, 3, 4}
    with pytest.raises(UserError, match=r"label\.nii: the label holds 3, 4, but the data list knows only 0, 1;"):
        check_label(path, {0, 1})
    save_label(path, values=(0.5,))
    with pytest.raises(UserError, match=r"whole numbers, found 0\.5"):
        check_label(path, {0, 1})


def test_unknown_value_in_a_pair(pair: dict[str, Any]) -> None:
    save_label(pair["label"], values=(1, 3, 4))
    check_pairs([pair], LABELS, ignore=4)
    with pytest.raises(UserError, match=r"case 't': .*the label holds 4, but the data list knows only 0, 1, 3"):
        check_pairs([pair], LABELS, ignore=None)


def test_ignored_voxels_of_a_reference_are_told(pair: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    check_pairs([pair], LABELS, ignore=4)
    assert "warning" not in capsys.readouterr().err
    save_label(pair["reference_label"][0], values=(1, 3, 4))
    check_pairs([pair, {**pair, "case": "u"}], LABELS, ignore=4)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert "reference_label.nii.gz: reference 'r' holds 4" in line
    assert "counts as background" in line


def test_reference_without_an_asked_label(pair: dict[str, Any]) -> None:
    save_label(pair["reference_label"][0], values=(3, 4))
    refuse(pair, r"the reference of case 't' has no RV \(value 1\): .*reference_label\.nii\.gz; annotate it")
    check_pairs([pair], LABELS, 4, asked=["LV"])


def test_target_may_lack_a_label(pair: dict[str, Any]) -> None:
    save_label(pair["label"], values=())
    check_pairs([pair], LABELS)


def test_label_may_stand_in_any_of_several_references(pair: dict[str, Any], tmp_path: Path) -> None:
    save_label(pair["reference_label"][0], values=(3,))
    save_label(tmp_path / "second.nii", values=(1,))
    pair["reference"].append("r2")
    pair["reference_image"].append(pair["reference_image"][0])
    pair["reference_label"].append(str(tmp_path / "second.nii"))
    check_pairs([pair], LABELS)


def test_frame_is_not_served_by_a_volume(pair: dict[str, Any], tmp_path: Path) -> None:
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "frame.png")
    del pair["label"]
    refuse(
        {**pair, "image": str(tmp_path / "frame.png")},
        r"frame\.png is a frame, but its reference .* a volume",
    )


@pytest.mark.parametrize("shape", [(7,), (7, 5), (7, 5, 4)])
def test_values_are_counted(shape: tuple[int, ...]) -> None:
    label = np.random.default_rng(0).integers(-2, 300, shape).astype(np.int32)
    values, counts = np.unique(label, return_counts=True)
    assert count_values(label) == dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_a_frame_is_no_label_of_a_volume() -> None:
    frame, volume = Geometry((4, 3), None, None, True), Geometry((4, 3, 2), np.eye(4), (1.0, 1.0, 1.0), False)
    with pytest.raises(UserError, match="kind frame, but volume in image"):
        check_same_grid("image", volume, "label", frame)


@pytest.mark.parametrize(
    ("shift", "overlap"), [(0.0, True), (31.9, True), (32.1, False), (-31.9, True), (-32.1, False)]
)
def test_volumes_overlap_until_their_boxes_part(shift: float, overlap: bool) -> None:
    """Four slices of 8 mm reach 32 mm."""
    one = Geometry((6, 5, 4), affine(), (1.5, 1.5, 8.0), False)
    other = Geometry((6, 5, 4), affine(a23=shift), (1.5, 1.5, 8.0), False)
    assert grids_overlap(one, other) == grids_overlap(other, one) == overlap
    assert grids_overlap(one, Geometry((4, 3), None, None, True))
