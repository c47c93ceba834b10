from __future__ import annotations

import gzip
import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_ext.data.images import (
    is_frame,
    read_first_range,
    read_first_values,
    read_geometry,
    read_image,
    read_label,
    read_nifti_header,
    read_picture_header,
    read_values,
    write_mask,
)
from monai_ext.errors import UserError
from monai_ext.files import sha256_of


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written just now are remembered too."""
    monkeypatch.setattr("monai_ext.files.CLOCK_TICK", 0)


def oblique_affine() -> np.ndarray:
    """A rotation about two axes, anisotropic spacing, first axis flipped."""
    c, s = np.cos(0.3), np.sin(0.3)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-1.2, 1.3, 8.0])
    affine[:3, 3] = 13.7, -40.25, 99.1
    return affine


def counting(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def save_volume(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, oblique_affine() if affine is None else affine), path)
    return path


def save_header(path: Path, header: nib.Nifti1Header, data: bytes = b"") -> Path:
    """Write a header as it stands, which nibabel's own saving would repair."""
    header["vox_offset"] = header.single_vox_offset
    raw = header.binaryblock.ljust(header.single_vox_offset, b"\0") + data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


# Volumes


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "with space é.nii.gz", "new\nline.nii", "V.NII.GZ"])
def test_volume_keeps_voxel_order_and_affine(tmp_path: Path, name: str) -> None:
    path = save_volume(tmp_path / name, counting((2, 3, 4)))
    geometry = read_geometry(path)
    np.testing.assert_array_equal(read_image(path), counting((2, 3, 4)))
    np.testing.assert_array_equal(read_label(path), counting((2, 3, 4)))
    assert (geometry.shape, geometry.is_frame) == ((2, 3, 4), False)
    np.testing.assert_allclose(geometry.affine, oblique_affine(), atol=1e-5)
    np.testing.assert_allclose(geometry.spacing, (1.2, 1.3, 8.0), rtol=1e-6)


def test_image_is_scaled_and_label_values_are_whole(tmp_path: Path) -> None:
    scaled = nib.Nifti1Image(np.arange(8, dtype=np.float64).reshape(2, 2, 2) * 3 - 5, np.eye(4))
    scaled.set_data_dtype(np.uint8)
    nib.save(scaled, tmp_path / "scaled.nii")
    assert nib.load(tmp_path / "scaled.nii").dataobj.slope != 1
    np.testing.assert_allclose(read_image(tmp_path / "scaled.nii"), scaled.get_fdata(), atol=0.1)
    assert read_image(tmp_path / "scaled.nii").dtype == np.float32
    whole = save_volume(tmp_path / "whole.nii", np.full((2, 2, 2), 3.0, np.float32))
    assert read_label(whole).dtype == np.int32
    half = save_volume(tmp_path / "half.nii", np.full((2, 2, 2), 0.5, np.float32))
    with pytest.raises(UserError, match=r"half\.nii: label values must be whole numbers, found 0\.5"):
        read_label(half)


@pytest.mark.parametrize(("stored", "read"), [((4, 3), (4, 3, 1)), ((4, 3, 2, 1), (4, 3, 2)), ((4, 3, 1), (4, 3, 1))])
def test_axes_of_length_one(tmp_path: Path, stored: tuple[int, ...], read: tuple[int, ...]) -> None:
    path = save_volume(tmp_path / "v.nii.gz", counting(stored))
    assert read_geometry(path).shape == read_image(path).shape == read_label(path).shape == read
    write_mask(tmp_path / "m.nii.gz", read_label(path), like=path)
    assert nib.load(tmp_path / "m.nii.gz").shape == stored


@pytest.mark.parametrize(
    ("code", "unit", "millimetres"),
    [(0, "unknown", 1), (1, "m", 1000), (2, "mm", 1), (3, "micrometre", 0.001), (3 + 8, "micrometre", 0.001)],
)
def test_geometry_is_in_mm_whatever_unit_the_header_states(
    tmp_path: Path, code: int, unit: str, millimetres: float
) -> None:
    volume = nib.Nifti1Image(counting((3, 4, 2)), oblique_affine())
    volume.header["xyzt_units"] = code
    nib.save(volume, tmp_path / "v.nii")
    geometry = read_geometry(tmp_path / "v.nii")
    assert geometry.unit == unit
    assert np.allclose(geometry.affine, np.diag([millimetres] * 3 + [1]) @ volume.affine)
    assert np.allclose(geometry.spacing, np.array([1.2, 1.3, 8.0]) * millimetres)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("least", "slices"), [(1, 1), (24, 2), (10**6, 5)])
def test_first_slices(tmp_path: Path, suffix: str, least: int, slices: int) -> None:
    path = save_volume(tmp_path / f"v{suffix}", counting((3, 4, 5)))
    assert np.array_equal(read_first_values(path, least), counting((3, 4, 5))[..., :slices])


def test_four_axes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"v\.nii: has 4 axes \(4 x 3 x 2 x 5\)"):
        read_geometry(save_volume(tmp_path / "v.nii", counting((4, 3, 2, 5))))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    data = np.zeros((4, 4, 4), np.float32)
    data[1, 2, 3] = value
    path = save_volume(tmp_path / "v.nii", data)
    with pytest.raises(UserError, match="1 of 64 values are NaN or Inf"):
        read_image(path)
    with pytest.raises(UserError, match="whole numbers"):
        read_label(path)


@pytest.mark.parametrize("keep", [0, 5, 200, -300, -5])
def test_truncated_gzip_is_refused(tmp_path: Path, keep: int) -> None:
    noise = np.random.default_rng(0).integers(0, 1000, (10, 10, 10), dtype=np.int16)
    path = save_volume(tmp_path / "v.nii.gz", noise)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"v\.nii\.gz: .*(truncated|no NIfTI)") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_truncated_volume_is_refused(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "v.nii", counting((10, 10, 10)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"v\.nii: truncated"):
        read_geometry(path)


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "v.nii.gz", np.random.default_rng(0).normal(size=(10, 10, 10)))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"v\.nii\.gz: not a sound gzip file"):
        read_image(path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_any_damaged_header_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = save_volume(tmp_path / "v.nii", counting((4, 3, 2)))
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(200):
        damaged = whole.copy()
        damaged[rng.integers(0, 352, 4)] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        with suppress(UserError):
            assert read_image(path).shape == read_geometry(path).shape


def test_what_is_no_nifti_is_refused(tmp_path: Path) -> None:
    plain = save_volume(tmp_path / "v.nii", counting((2, 2, 2)))
    plain.rename(tmp_path / "v.nii.gz")
    with pytest.raises(UserError, match="not a sound gzip file"):
        read_geometry(tmp_path / "v.nii.gz")
    (tmp_path / "text.nii").write_text("no image " * 100)
    with pytest.raises(UserError, match="no NIfTI file"):
        read_geometry(tmp_path / "text.nii")
    with pytest.raises(UserError, match="there is no such file"):
        read_image(tmp_path / "missing.nii.gz")
    with pytest.raises(UserError, match=r"cannot be read; convert it to one of \.nii, \.nii\.gz, \.png"):
        read_image(tmp_path / "slice.dcm")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_absurd_size_is_refused_before_allocation(tmp_path: Path, suffix: str) -> None:
    header = nib.Nifti2Header()
    header.set_data_shape((100_000,) * 3)
    with pytest.raises(UserError, match="claims 100000 x 100000 x 100000 voxels"):
        read_image(save_header(tmp_path / f"huge{suffix}", header))
    header.set_data_shape((1000,) * 3)
    with pytest.raises(UserError, match="truncated: the header claims 1000 x 1000 x 1000 voxels"):
        read_image(save_header(tmp_path / f"large{suffix}", header))


def test_spacing_of_zero_is_refused(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((2, 2, 2))
    header.set_data_dtype(np.uint8)
    header["pixdim"][3] = 0
    with pytest.raises(UserError, match=r"spacing is 0 mm on an axis \(1 x 1 x 0\)"):
        read_geometry(save_header(tmp_path / "v.nii", header, bytes(8)))


def test_unusable_affine_is_refused(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((2, 2, 2))
    header.set_data_dtype(np.uint8)
    header["qform_code"], header["quatern_b"] = 1, 5
    with pytest.raises(UserError, match="qform is not usable"):
        read_geometry(save_header(tmp_path / "q.nii", header, bytes(8)))
    header["sform_code"], header["srow_x"] = 1, np.nan
    with pytest.raises(UserError, match="affine holds NaN"):
        read_geometry(save_header(tmp_path / "s.nii", header, bytes(8)))


def test_colour_volume_is_refused(tmp_path: Path) -> None:
    rgb = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(UserError, match="colours or complex"):
        read_image(save_volume(tmp_path / "v.nii", rgb))


# Frames


def asymmetric_picture() -> np.ndarray:
    """[H, W] = [3, 5], every pixel another value."""
    return np.arange(15, dtype=np.uint8).reshape(3, 5)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".PNG"])
def test_frame_is_transposed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"frame{suffix}"
    Image.fromarray(asymmetric_picture()).save(path)
    np.testing.assert_array_equal(read_image(path), asymmetric_picture().T)
    np.testing.assert_array_equal(read_label(path), asymmetric_picture().T)
    geometry = read_geometry(path)
    assert (geometry.shape, geometry.affine, geometry.spacing, geometry.is_frame) == (
        (5, 3),
        None,
        None,
        True,
    )


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    values = asymmetric_picture().astype(np.uint16) * 4000
    Image.fromarray(values).save(tmp_path / "frame.png")
    np.testing.assert_array_equal(read_image(tmp_path / "frame.png"), values.T)


def test_palette_gives_colours_to_images_and_indices_to_labels(tmp_path: Path) -> None:
    picture = Image.fromarray(asymmetric_picture()).convert("P")
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "frame.png")
    np.testing.assert_array_equal(read_image(tmp_path / "frame.png"), palette[asymmetric_picture()].swapaxes(0, 1))
    np.testing.assert_array_equal(read_label(tmp_path / "frame.png"), asymmetric_picture().T)


def test_transparency_is_shown_over_black(tmp_path: Path) -> None:
    rgba = np.full((3, 5, 4), 200, np.uint8)
    rgba[..., 3] = np.where(asymmetric_picture() < 5, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    expected = np.where(asymmetric_picture() < 5, 0, 200).T
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), np.stack([expected] * 3, -1))
    Image.fromarray(rgba[..., 2:]).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), expected)
    assert (read_label(tmp_path / "rgba.png") == 200).all()


def test_label_may_be_grey_in_three_channels_but_not_colour(tmp_path: Path) -> None:
    grey = np.stack([asymmetric_picture()] * 3, -1)
    Image.fromarray(grey).save(tmp_path / "label.png")
    np.testing.assert_array_equal(read_label(tmp_path / "label.png"), asymmetric_picture().T)
    grey[0, 0, 1] = 7
    Image.fromarray(grey).save(tmp_path / "colour.png")
    with pytest.raises(UserError, match=r"colour\.png: a label has one channel"):
        read_label(tmp_path / "colour.png")


def test_one_bit_picture(tmp_path: Path) -> None:
    Image.fromarray(asymmetric_picture() > 7).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_label(tmp_path / "mask.png"), (asymmetric_picture() > 7).T)
    np.testing.assert_array_equal(read_image(tmp_path / "mask.png"), 255 * (asymmetric_picture() > 7).T)


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"})])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, -2), (6, -1), (8, -3)])
def test_exif_orientation_is_applied_and_masks_fit_it(
    tmp_path: Path, name: str, options: dict[str, str], orientation: int, turns: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(asymmetric_picture()).save(tmp_path / name, exif=exif, **options)
    shown = np.rot90(asymmetric_picture(), turns)
    image = read_image(tmp_path / name)
    np.testing.assert_array_equal(image, shown.T)
    assert read_geometry(tmp_path / name).shape == image.shape
    write_mask(tmp_path / "mask.png", image.astype(int), like=tmp_path / name)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), shown)


@pytest.mark.parametrize("late", [False, True])
def test_orientation_of_a_png_is_found_before_and_after_the_pixels(tmp_path: Path, late: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(asymmetric_picture()).save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    if late:
        content = content[:start] + content[end:-12] + content[start:end] + content[-12:]
        (tmp_path / "a.png").write_bytes(content)
    assert read_geometry(tmp_path / "a.png").shape == read_image(tmp_path / "a.png").shape == (3, 5)


def test_shape_of_an_upright_png_is_read_without_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(asymmetric_picture()).save(tmp_path / "a.png")
    monkeypatch.delattr("PIL.ImageFile.ImageFile.load")
    assert read_geometry(tmp_path / "a.png").shape == (5, 3)


def test_a_header_is_its_callers_own(tmp_path: Path, settled: None) -> None:
    path = save_volume(tmp_path / "v.nii", counting((2, 2, 2)))
    for _ in range(2):
        geometry, header = read_geometry(path), read_nifti_header(path)
        np.testing.assert_array_equal(geometry.affine, nib.load(path).affine)
        assert header["pixdim"][3] == 8
        geometry.affine[:] = 0
        header["pixdim"] = 0


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "a.png"])
def test_a_file_is_opened_once(tmp_path: Path, name: str, settled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    if name == "a.png":
        Image.fromarray(asymmetric_picture()).save(path)
    else:
        save_volume(path, counting((3, 4, 5)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    image = read_image(path, with_sha256=True)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", None)
        assert read_geometry(path).shape == image.shape
        assert sha256_of(path) == digest
        if name == "a.png":
            assert read_picture_header(path).mode == "L"
        else:
            assert read_first_range(path) == (image.min(), image.max())
            assert read_nifti_header(path).get_data_shape() == image.shape


def test_a_file_that_changed_is_read_again(tmp_path: Path, settled: None) -> None:
    path = save_volume(tmp_path / "v.nii", counting((3, 4, 5)))
    assert read_first_range(path) == (0, 59)
    read_image(path, with_sha256=True)
    time.sleep(0.02)  # a tick of the kernel's clock
    save_volume(path, counting((5, 4, 3)) + 1)
    assert read_geometry(path).shape == (5, 4, 3)
    assert read_first_range(path) == (1, 60)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    with pytest.raises(UserError, match="there is no such file"):
        read_geometry(path)


@pytest.mark.parametrize("known", [False, True])
def test_the_first_slices_give_the_range(tmp_path: Path, settled: None, known: bool) -> None:
    values = np.zeros((512, 512, 3), np.int16)
    values[0, 0] = 7, 8, 9
    path = save_volume(tmp_path / "v.nii", values)
    if known:
        read_image(path)
    assert read_first_range(path) == (0, 7)


def test_header_is_read_as_it_stands(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "v.nii", counting((2, 2, 2)))
    content = bytearray(path.read_bytes())
    content[80:84] = np.float32(-1.5).tobytes()  # pixdim[1]
    path.write_bytes(content)
    np.testing.assert_allclose(read_nifti_header(path)["pixdim"][1:4], (-1.5, 1.3, 8.0))
    with pytest.raises(UserError, match=r"none\.nii: there is no such file"):
        read_nifti_header(tmp_path / "none.nii")


def test_values_that_are_no_numbers_can_be_read(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "v.nii", np.array([[[0, np.nan]]], np.float32))
    np.testing.assert_array_equal(read_values(path), [[[0, np.nan]]])


def test_unreadable_pictures_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), dtype=np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for name, content in {"cut.png": whole[:-500], "text.png": b"no picture", "empty.jpg": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: damaged or no picture"):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="there is no such file"):
        read_label(tmp_path / "missing.png")
    pages = [Image.fromarray(asymmetric_picture()) for _ in range(2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="several pictures"):
        read_geometry(tmp_path / "pages.tif")


def test_infinite_frame_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 3), np.inf, np.float32)).save(tmp_path / "frame.tif")
    with pytest.raises(UserError, match="9 of 9 values"):
        read_image(tmp_path / "frame.tif")


# Writing


@pytest.mark.parametrize("codes", [(1, 4), (0, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_mask_keeps_sform_qform_and_codes(tmp_path: Path, codes: tuple[int, int], image_class: type) -> None:
    image = image_class(counting((4, 3, 2)), None)
    image.header["descrip"] = b"name of the patient"
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(oblique_affine(), 1)
    image.set_sform(np.diag([2.0, -3, 4, 1]), 1)
    image.header["qform_code"], image.header["sform_code"] = codes
    nib.save(image, tmp_path / "image.nii.gz")
    mask = (counting((4, 3, 2)) % 3).astype(np.int64)
    write_mask(tmp_path / "mask.nii.gz", mask, like=tmp_path / "image.nii.gz")
    source, written = nib.load(tmp_path / "image.nii.gz"), nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(written.affine, source.affine)
    for field in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_y", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(written.header[field], source.header[field])
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), mask)
    assert written.get_data_dtype() == np.uint8
    assert bytes(written.header["descrip"]).strip(b"\0") == b""
    np.testing.assert_array_equal(read_label(tmp_path / "mask.nii.gz"), mask)


@pytest.mark.parametrize(("highest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.uint32)])
def test_mask_takes_the_smallest_type(tmp_path: Path, highest: int, dtype: type) -> None:
    image = save_volume(tmp_path / "image.nii", counting((2, 2, 2)))
    write_mask(tmp_path / "mask.nii", np.full((2, 2, 2), highest), like=image)
    assert nib.load(tmp_path / "mask.nii").get_data_dtype() == dtype
    assert (read_label(tmp_path / "mask.nii") == highest).all()


@pytest.mark.parametrize("factor", [1, 100])
def test_mask_of_a_frame_has_its_orientation(tmp_path: Path, factor: int) -> None:
    Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(tmp_path / "frame.png")
    mask = asymmetric_picture().T.astype(np.int32) * factor
    write_mask(tmp_path / "mask.png", mask, like=tmp_path / "frame.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), mask.T)
    np.testing.assert_array_equal(read_label(tmp_path / "mask.png"), mask)


@pytest.mark.parametrize("unit", [0, 1, 2, 3])
def test_mask_keeps_the_unit_of_its_image(tmp_path: Path, unit: int) -> None:
    volume = nib.Nifti1Image(counting((3, 4, 2)), oblique_affine())
    volume.header["xyzt_units"] = unit
    nib.save(volume, tmp_path / "v.nii")
    write_mask(tmp_path / "m.nii", np.ones((3, 4, 2), np.uint8), like=tmp_path / "v.nii")
    for field in ("xyzt_units", "srow_x", "srow_y", "srow_z", "pixdim"):
        assert np.array_equal(nib.load(tmp_path / "m.nii").header[field], nib.load(tmp_path / "v.nii").header[field])


def test_same_mask_gives_same_bytes(tmp_path: Path) -> None:
    image = save_volume(tmp_path / "image.nii.gz", counting((4, 3, 2)))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / name, counting((4, 3, 2)), like=image)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_mask_that_does_not_belong_to_the_image(tmp_path: Path) -> None:
    image = save_volume(tmp_path / "image.nii", counting((4, 3, 2)))
    with pytest.raises(ValueError, match=r"shape \(3, 4, 2\)"):
        write_mask(tmp_path / "m.nii", np.zeros((3, 4, 2), int), like=image)
    with pytest.raises(ValueError, match="cannot be stored"):
        write_mask(tmp_path / "m.png", np.zeros((4, 3, 2), int), like=image)
    with pytest.raises(ValueError, match="whole numbers >= 0"):
        write_mask(tmp_path / "m.nii", np.full((4, 3, 2), -1), like=image)
    assert sorted(os.listdir(tmp_path)) == ["image.nii"]


def test_frames_are_told_by_their_suffix() -> None:
    assert is_frame("x.JPEG")
    assert not is_frame("x.png.nii.gz")
