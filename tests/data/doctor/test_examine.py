from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_ext.data.doctor import Finding, examine, facts, stops
from monai_ext.data.doctor.examine import LIST_CHECKS, read_facts_of
from monai_ext.data.manifest import load_datalist
from monai_ext.data.pairs import pair_with_reference
from monai_ext.errors import UserError


@dataclass(frozen=True)
class Fault:
    """A way to spoil a study, what of it must be found, and what follows from it besides."""

    spoil: Callable
    fast: bool
    also: frozenset[str]


FAULTS: dict[str, list[Fault]] = {}


def fault(code: str, *also: str, fast: bool = True) -> Callable[[Callable], Callable]:
    """Register a function that spoils a study so that ``code`` is found; ``fast``: by headers alone."""

    def register(spoil: Callable) -> Callable:
        FAULTS.setdefault(code, []).append(Fault(spoil, fast, frozenset(also)))
        return spoil

    return register


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings}


# The list


@fault("list_unreadable")
def nested_too_deep(study):
    study.content["extra"] = []
    for _ in range(30):
        study.content["extra"] = [study.content["extra"]]


@fault("list_unreadable")
def nested_far_too_deep(study):
    study.write = lambda: study.path("list.json").write_text("[" * 10**6) and study.path("list.json")


@fault("list_unreadable")
def huge_list(study):
    def write():
        with open(study.path("list.json"), "wb") as file:
            file.truncate(60 * 2**20)  # takes no space
        return study.path("list.json")

    study.write = write


@fault("wrong_key")
def image_is_a_number(study):
    study.cases[3]["image"] = 7


@fault("wrong_key")
def no_labels(study):
    del study.content["labels"]


@fault("wrong_key")
def visit_is_a_word(study):
    study.cases[3]["visit"] = "first"


@fault("no_cases")
def empty_list(study):
    study.cases.clear()


@fault("file_missing")
def mistyped_path(study):
    study.cases[3]["scribble"] = "missing.nii.gz"


@fault("path_leaves_root")
def path_with_dots(study):
    study.cases[3]["scribble"] = "../b1_scribble.nii"


@fault("path_leaves_root")
def link_that_leads_out(study):
    outside = study.folder.parent / f"{study.folder.name}_outside.nii"
    study.path("b1_scribble.nii").rename(outside)
    study.path("b1_scribble.nii").symlink_to(outside)


@fault("duplicate_case")
def same_name(study):
    study.cases[1]["case"] = "a0"


@fault("similar_case")
def same_name_on_windows(study):
    study.cases[1]["case"] = "A0"


@fault("similar_case")
def same_name_on_macos(study):
    study.cases[0]["case"], study.cases[1]["case"] = "é", unicodedata.normalize("NFD", "é")


@fault("odd_path")
def line_break_in_path(study):
    study.path("a0.nii").rename(study.path("a\n0.nii"))
    study.cases[0]["image"] = "a\n0.nii"


@fault("wrong_ignore")
def ignore_is_a_structure(study):
    study.content["ignore"] = 2
    for case in study.cases:
        del case["scribble"]


@fault("patient_spelled_twice", "single_visit")
def one_patient_in_capitals(study):
    study.cases[1]["patient"] = f" {study.cases[0]['patient'].upper()}"


@fault("patient_in_two_splits")
def patient_in_train_and_test(study):
    study.cases[1]["split"] = "test"


@fault("patient_in_two_folds")
def patient_in_folds(study):
    for number, case in enumerate(study.cases):
        case["fold"] = number


@fault("split_missing")
def case_without_split(study):
    del study.cases[1]["split"]


@fault("fold_missing")
def case_without_fold(study):
    study.cases[0]["fold"] = 0


@fault("mixed_visits")
def date_and_number(study):
    study.cases[1]["visit"] = "2023-04-15"


@fault("unequal_references")
def reference_without_label(study):
    study.cases[1]["reference_image"] = "a0.nii"


@fault("label_is_image", "single_visit")
def image_as_label(study):
    study.content["labels"] = {"tissue": 1}
    study.save("b1.nii", (study.rng.random((12, 10, 6)) < 0.5).astype(np.uint8))
    study.content["cases"] = [{**study.cases[3], "label": "b1.nii", "scribble": None}]


# Files


@fault("unknown_kind")
def dicom_slice(study):
    study.path("b1.dcm").touch()
    study.cases[3]["image"] = "b1.dcm"


@fault("truncated")
def cut_volume(study):
    study.path("b1.nii").write_bytes(study.path("b1.nii").read_bytes()[:-100])


@fault("truncated", fast=False)
def cut_gzip(study):
    path = study.save("b1.nii.gz", study.image())
    path.write_bytes(path.read_bytes()[:-100])
    study.cases[3]["image"] = "b1.nii.gz"


@fault("bad_gzip")
def gzip_that_is_none(study):
    study.path("b1.nii").rename(study.path("b1.nii.gz"))
    study.cases[3]["image"] = "b1.nii.gz"


@fault("bad_gzip", fast=False)
def wrong_checksum(study):
    content = bytearray(gzip.compress(study.path("b1.nii").read_bytes()))
    content[-6] ^= 1
    study.path("b1.nii.gz").write_bytes(content)
    study.cases[3]["image"] = "b1.nii.gz"


@fault("damaged")
def text_as_volume(study):
    study.path("b1.nii").write_text("no image " * 100)


@fault("damaged")
def cut_picture(study):
    study.use_frames()
    study.path("2.png").write_bytes(study.path("2.png").read_bytes()[:-60])


@fault("four_axes")
def time_axis(study):
    study.save("b1.nii", study.image((12, 10, 6, 3)))


@fault("value_type")
def colour_volume(study):
    study.save("b1.nii", np.zeros((12, 10, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


@fault("too_large")
def header_bomb(study):
    header = nib.Nifti2Header()
    header.set_data_shape((100_000,) * 3)
    header["vox_offset"] = header.single_vox_offset
    study.path("b1.nii").write_bytes(header.binaryblock.ljust(header.single_vox_offset, b"\0"))


@fault("several_pictures")
def pages(study):
    study.use_frames()
    page = Image.open(study.path("2.png"))
    page.save(study.path("2.tif"), save_all=True, append_images=[page])
    study.cases[1]["image"] = "2.tif"


@fault("colour_label", fast=False)
def label_in_colours(study):
    study.use_frames()
    study.save("2_label.png", study.rng.integers(0, 255, (14, 11, 3), dtype=np.uint8))


@fault("scale_assumed", "sixteen_bit", fast=False)
def decimals_up_to_one(study):
    study.use_frames()
    save_frame(study, study.rng.random((14, 11), dtype=np.float32))


@fault("scale_assumed", "sixteen_bit", fast=False)
def eight_bits_in_sixteen(study):
    study.use_frames()
    save_frame(study, study.rng.integers(0, 256, (14, 11)).astype(np.uint16) * 257, "2.png")


@fault("scales_differ", "scale_assumed", "sixteen_bit", fast=False)
def decimals_of_no_known_scale(study):
    study.use_frames()
    save_frame(study, study.rng.random((14, 11), dtype=np.float32) * 5000)


def save_frame(study, pixels: np.ndarray, name: str = "2.tif") -> None:
    study.save(name, pixels)
    study.cases[1]["image"] = name


@fault("transparent", fast=False)
def alpha_channel(study):
    study.use_frames()
    study.save("2.png", study.rng.integers(0, 255, (14, 11, 4), dtype=np.uint8))


@fault("sixteen_bit", "scale_assumed", "scales_differ")
def sixteen_bits_of_grey(study):
    study.use_frames()
    study.save("2.png", study.rng.integers(0, 4000, (14, 11)).astype(np.uint16))


@fault("sixteen_bit")
def sixteen_bits_of_colour(study):
    study.use_frames()
    study.path("2.png").write_bytes(rgb16_png(study.rng.integers(0, 2**16, (11, 14, 3)).astype(">u2")))


def rgb16_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit colours [H, W, 3], which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@fault("palette")
def label_with_palette(study):
    study.use_frames()
    with Image.open(study.path("2_label.png")) as label:
        indexed = label.point(lambda value: value // 255).convert("P")
    indexed.putpalette([0, 0, 0, 255, 0, 0])
    indexed.save(study.path("2_label.png"))
    with Image.open(study.path("1_label.png")) as label:
        label.point(lambda value: value // 255).save(study.path("1_label.png"))
    study.content["labels"] = {"polyp": 1}


@fault("lossy_label")
def label_as_jpeg(study):
    study.use_frames()
    label = np.zeros((16, 16), np.uint8)
    label[:, :8] = 255  # a border between blocks of JPEG, so that values happen to be exact
    for number in "12":
        study.save(f"{number}.png", study.rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        study.save(f"{number}_label.png", label if number == "2" else label.T)
    Image.fromarray(label.T).save(study.path("2_label.jpg"), quality=100)
    study.cases[1]["label"] = "2_label.jpg"


@fault("wrong_suffix")
def bitmap_called_png(study):
    study.use_frames()
    with Image.open(study.path("2.png")) as picture:
        picture.save(study.path("2.bmp"))
    study.path("2.bmp").rename(study.path("2.png"))


@fault("exif_rotated")
def both_lie(study):
    study.use_frames()
    for name in ("2.png", "2_label.png"):
        turn(study.path(name), 3)


@fault("exif_differs", "exif_rotated")
def image_lies(study):
    study.use_frames()
    turn(study.path("2.png"), 3)


def turn(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as picture:
        picture.load()
    picture.save(path, exif=exif)


@fault("image_twice")
def one_image_for_two(study):
    study.cases[1]["image"] = "a0.nii"


# Geometry


@fault("kind_differs")
def frame_as_label(study):
    study.save("b1.png", study.label((14, 11)))
    study.cases[3]["label"] = "b1.png"


@fault("shape_differs")
def label_is_shorter(study):
    study.save("b1_label.nii", study.label((12, 10, 5)))


@fault("shape_differs")
def scribble_is_shorter(study):
    scribble = study.label((12, 10, 5))
    study.save("b1_scribble.nii", np.where(scribble == 0, 4, scribble))


def changed(study, **entries: float) -> np.ndarray:
    """The study's affine with other entries: a23=1 sets row 2, column 3."""
    affine = nib.load(study.path("a0.nii")).affine.copy()
    for name, value in entries.items():
        affine[int(name[1]), int(name[2])] = value
    return affine


@fault("grid_differs")
def other_spacing(study):
    study.save("b1_label.nii", study.label(), changed(study) @ np.diag([1, 1, 1.2, 1]))


@fault("grid_differs")
def other_origin(study):
    study.save("b1_label.nii", study.label(), changed(study, a03=9))


@fault("grid_differs", "unit_not_mm", "odd_spacing")
def same_numbers_in_another_unit(study):
    study.edit_header("b1.nii", xyzt_units=2)
    study.edit_header("b1_label.nii", xyzt_units=1)


@fault("grid_differs")
def mirrored(study):
    study.save("b1_label.nii", study.label(), changed(study) @ np.diag([-1, 1, 1, 1]))


@fault("grid_differs")
def flipped(study):
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = study.label().shape[0] - 1
    study.save("b1_label.nii", study.label(), changed(study) @ flip)


def test_flipped_axes_are_told_from_another_grid(study):
    flipped(study)
    (finding,) = examine(study.write())
    assert "only its axes are flipped" in finding.sentence
    mirrored(study)
    (finding,) = examine(study.write())
    assert "flipped" not in finding.sentence


@fault("same_visit")
def two_images_of_a_visit(study):
    study.cases.append({**study.cases[0], "case": "again", "image": "a0_copy.nii"})
    study.save("a0_copy.nii", study.image())


@fault("bad_affine")
def affine_of_nan(study):
    study.edit_header("b1.nii", srow_x=(np.nan, 0, 0, 0))


@fault("sheared")
def sheared_axes(study):
    affine = changed(study)
    affine[:3, 2] += 0.3 * affine[:3, 0]
    for name in ("b1", "b1_label", "b1_scribble"):
        volume = nib.load(study.path(f"{name}.nii"))
        study.save(f"{name}.nii", np.asarray(volume.dataobj).copy(), affine)
        study.edit_header(f"{name}.nii", qform_code=0)


@fault("zero_spacing")
def flat_qform(study):
    study.edit_header("b1.nii", sform_code=0, qform_code=1, pixdim=(1, 1.5, 1.25, 0, 0, 0, 0, 0))


@fault("zero_spacing")
def flat_sform(study):
    study.edit_header("b1.nii", srow_x=(1, 0, 0, 0), srow_y=(0, 1, 0, 0), srow_z=(0, 0, 0, 0), qform_code=0)


@fault("negative_spacing")
def negative_pixdim(study):
    study.edit_header("b1.nii", pixdim=(1, -1.5, 1.25, 4, 0, 0, 0, 0))


@fault("spacing_disagrees")
def other_pixdim(study):
    study.edit_header("b1.nii", pixdim=(1, 1, 1, 1, 0, 0, 0, 0), qform_code=0)


@fault("forms_differ")
def moved_qform(study):
    study.edit_header("b1.nii", qform_code=1, qoffset_x=99)


@fault("no_orientation")
def no_forms(study):
    for name in ("b1", "b1_label", "b1_scribble"):
        study.edit_header(f"{name}.nii", qform_code=0, sform_code=0)


@fault("position_lost")
def plain_affine(study):
    for case in study.cases:
        for key in ("image", "label", "scribble"):
            data = np.asarray(nib.load(study.path(case[key])).dataobj).copy()
            study.save(case[key], data, np.diag([-1.5, -1.5, 8, 1]))


@fault("unit_not_mm")
def micrometres(study):
    """Label maps state no unit, as many tools write them."""
    affine = np.diag([1e3, 1e3, 1e3, 1]) @ changed(study)
    for case in study.cases:
        for key in ("image", "label", "scribble"):
            study.save(case[key], np.asarray(nib.load(study.path(case[key])).dataobj).copy(), affine)
        study.edit_header(case["image"], xyzt_units=3)


@fault("unit_not_mm", "odd_spacing", "visits_apart")
def millimetres_called_metres(study):
    study.edit_header("b1.nii", xyzt_units=1)


@fault("odd_spacing")
def spacing_in_metres(study):
    resample(study, np.diag([1e-3, 1e-3, 1e-3, 1]))


def resample(study, matrix: np.ndarray) -> None:
    """Give each file another affine."""
    for case in study.cases:
        for key in ("image", "label", "scribble"):
            data = np.asarray(nib.load(study.path(case[key])).dataobj).copy()
            affine = changed(study) if case is study.cases[0] and key == "image" else study.affine
            study.affine = affine
            study.save(case[key], data, affine @ matrix)


@fault("one_slice")
def single_slice(study):
    study.save("b1.nii", study.image((12, 10, 1)))
    study.save("b1_label.nii", study.label((12, 10, 1)))
    del study.cases[3]["scribble"]


@fault("very_anisotropic")
def thick_slices(study):
    resample(study, np.diag([1, 1, 5, 1]))


@fault("visits_apart")
def far_away(study):
    for key in ("image", "label", "scribble"):
        data = np.asarray(nib.load(study.path(study.cases[3][key])).dataobj).copy()
        study.save(study.cases[3][key], data, changed(study, a23=2000))


@fault("kind_of_reference")
def frame_after_volume(study):
    study.save("b1.png", study.rng.integers(0, 255, (14, 11, 3), dtype=np.uint8))
    study.cases[3] = {**study.cases[3], "image": "b1.png", "label": None, "scribble": None}


# Values


@fault("not_a_number", fast=False)
def nan_in_image(study):
    study.save("b1.nii", with_value(study, np.nan))


@fault("infinite", fast=False)
def infinity_in_image(study):
    study.save("b1.nii", with_value(study, -np.inf))


def with_value(study, value: float) -> np.ndarray:
    image = study.image().astype(np.float32)
    image[3, 2, 1] = value
    return image


@fault("constant_image", fast=False)
def empty_image(study):
    study.save("b1.nii", np.full((12, 10, 6), 7, np.int16))


@fault("ct_not_hu", fast=False)
def stored_values_of_ct(study):
    study.cases[3]["modality"] = "CT"


@fault("ct_not_hu", fast=False)
def normalised_ct(study):
    study.cases[3]["modality"] = "CT"
    study.save("b1.nii", (study.image() / 500 - 1).astype(np.float32))


@fault("ct_not_hu", "sixteen_bit", "scales_differ", fast=False)
def stored_values_of_ct_as_a_picture(study):
    study.use_frames()
    study.content["modality"] = "CT"
    save_frame(study, study.rng.integers(0, 4000, (14, 11)).astype(np.uint16), "2.png")


@fault("hu_without_ct", fast=False)
def ct_called_mr(study):
    study.save("b1.nii", 3 * study.image() - 1024)


@fault("label_not_whole", fast=False)
def interpolated_label(study):
    study.save("b1_label.nii", study.label() / np.float32(2))


@fault("unknown_label_value", fast=False)
def further_value(study):
    study.save("b1_label.nii", study.label() * 3)


@fault("structure_never_seen", "structure_not_in_reference", fast=False)
def mistyped_value(study):
    study.content["labels"]["vessel"] = 3


@fault("only_background", fast=False)
def empty_label(study):
    study.save("b1_label.nii", np.zeros((12, 10, 6), np.uint8))


@fault("empty_reference", fast=False)
def empty_first_visit(study):
    study.save("b0_label.nii", np.zeros((12, 10, 6), np.uint8))


@fault("structure_not_in_reference", fast=False)
def reference_of_one_structure(study):
    study.save("b0_label.nii", np.minimum(study.label(), 1))


@fault("tiny_structure", fast=False)
def a_few_voxels(study):
    label = study.label()
    label[label == 1] = 0
    label[3, 4, 2:4] = 1
    study.save("b1_label.nii", label)


@fault("empty_scribble", fast=False)
def scribble_of_nothing(study):
    study.save("b1_scribble.nii", np.full((12, 10, 6), 4, np.uint8))


@fault("nothing_unlabelled", fast=False)
def scribbles_on_background(study):
    for case in study.cases:
        study.save(case["scribble"], study.label())


@fault("nothing_unlabelled", "unknown_label_value", fast=False)
def no_ignore(study):
    del study.content["ignore"]


@fault("dense_scribble", fast=False)
def scribble_on_background(study):
    study.save("b1_scribble.nii", study.label())


@fault("same_image", fast=False)
def copied_image(study):
    study.save("b1.nii", np.asarray(nib.load(study.path("a0.nii")).dataobj).copy(), changed(study))


@fault("same_label", fast=False)
def copied_label(study):
    study.path("b1_label.nii").write_bytes(study.path("a0_label.nii").read_bytes())


# Patients


@fault("no_patient")
def nameless(study):
    for case in study.cases:
        del case["patient"]


@fault("nothing_to_follow", "single_visit")
def one_visit_of_each(study):
    del study.cases[3], study.cases[1]
    for case in study.cases:
        del case["split"], case["scribble"]


@fault("nothing_to_follow", "no_annotated_visit")
def nobody_annotated(study):
    for case in study.cases:
        del case["split"], case["scribble"], case["label"]


@fault("single_visit")
def one_visit(study):
    del study.cases[3]


@fault("visit_missing")
def undated(study):
    del study.cases[3]["visit"]


@fault("no_annotated_visit")
def unannotated(study):
    for case in study.cases[2:]:
        del case["label"], case["scribble"]


@fault("label_in_last_visit_only")
def annotated_late(study):
    del study.cases[2]["label"]


@fault("own_reference")
def itself(study):
    study.cases[3].update(reference_image="b1.nii", reference_label="b1_label.nii")


# What is found


def test_nothing_is_found_where_nothing_is_wrong(study):
    assert examine(study.write(), fast=False) == []
    assert examine(load_datalist(study.write())) == []


def test_nothing_is_found_in_sound_frames(study):
    study.use_frames()
    assert examine(study.write(), fast=False) == []


def test_blanks_and_any_alphabet_are_fine_in_paths(study):
    study.path("dà ta").mkdir()
    study.path("a0.nii").rename(study.path("dà ta/图 0.nii"))
    study.cases[0]["image"] = "dà ta/图 0.nii"
    study.cases[0]["case"] = "图 0"
    assert examine(study.write(), fast=False) == []


def test_each_check_has_a_fault():
    assert {check.code for check in LIST_CHECKS} == set(FAULTS)
    assert len(LIST_CHECKS) == len(FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "made"),
    [pytest.param(code, made, id=made.spoil.__name__) for code, several in FAULTS.items() for made in several],
)
def test_a_fault_is_found_and_nothing_else(study, code, made):
    made.spoil(study)
    path = study.write()
    found = examine(path, fast=False)
    assert codes(found) == {code} | made.also
    assert (code in codes(examine(path))) == made.fast
    for finding in found:
        assert finding.sentence
        assert finding.fix
        assert not finding.sentence.endswith((".", ";"))
        assert "\n" not in str(finding)


def test_a_finding_names_case_file_and_fix(study):
    study.save("b1_label.nii", study.label((12, 10, 5)))
    (finding,) = examine(study.write())
    assert (finding.number, finding.level, finding.case) == (1, "error", "b1")
    assert finding.file == str(study.path("b1_label.nii"))
    assert str(finding) == (
        "case b1: label b1_label.nii has shape 12 x 10 x 5 but its image b1.nii 12 x 10 x 6; "
        "name the label map of this image, or resample it to the image"
    )


def test_a_wrong_key_hides_nothing_else_of_its_case(study):
    visit_is_a_word(study)
    other_origin(study)
    assert codes(examine(study.write())) == {"wrong_key", "grid_differs"}


def test_everything_is_found_at_once(study):
    for spoil in (nan_in_image, same_name, other_origin, patient_in_train_and_test, mistyped_path):
        spoil(study)
    study.cases.append({"case": 5})
    found = examine(study.write(), fast=False)
    assert codes(found) == {
        *("not_a_number", "duplicate_case", "grid_differs", "patient_in_two_splits", "file_missing", "wrong_key")
    }
    assert [finding.sentence for finding in found if finding.code == "wrong_key"] == [
        "cases[4], key 'case' must be text in quotes, not 5",
        "cases[4], key 'image' is missing",
    ]


@pytest.mark.parametrize("spoil", [same_name, path_with_dots, date_and_number, empty_list, huge_list, no_labels])
def test_errors_of_the_list_stop_a_run(study, spoil):
    spoil(study)
    with pytest.raises(UserError):
        load_datalist(study.write())


def test_each_file_is_read_once(study, monkeypatch):
    read: list[str] = []
    for name in ("read_values", "read_label"):
        function = getattr(facts, name)
        monkeypatch.setattr(facts, name, lambda path, function=function: (read.append(path), function(path))[1])
    study.cases[1].update(reference_image="a0.nii", reference_label="a0_label.nii")
    examine(study.write(), fast=False)
    assert len(read) == len(set(read)) == 12


def test_only_doubtful_files_are_looked_into(study, monkeypatch):
    read: list[str] = []
    for name in ("read_values", "read_label"):
        function = getattr(facts, name)
        monkeypatch.setattr(facts, name, lambda path, f=function: (read.append(Path(path).name), f(path))[1])
    stored_values_of_ct(study)
    assert codes(examine(study.write(), glance=True)) == {"ct_not_hu"}
    assert sorted(read) == ["a0_scribble.nii", "a1_scribble.nii", "b0_scribble.nii", "b1.nii", "b1_scribble.nii"]


@pytest.mark.parametrize(
    "spoil", [scribbles_on_background, scribble_on_background, ct_called_mr, normalised_ct, decimals_of_no_known_scale]
)
def test_a_glance_finds_what_gives_a_wrong_result(study, spoil):
    spoil(study)
    path = study.write()
    assert codes(examine(path, glance=True)) == codes(examine(path, fast=False))


def test_a_ct_without_air_in_its_first_slices_is_no_mistake(study):
    study.cases[3]["modality"] = "CT"
    image = np.zeros((64, 64, 80), np.int16)
    image[..., 70:] = -1000
    image[..., 72:] = 60
    study.save("b1.nii", image)
    study.save("b1_label.nii", study.label(image.shape))
    del study.cases[3]["scribble"]
    assert examine(study.write(), glance=True) == []


def test_the_value_of_what_nobody_drew_on_is_told(study):
    no_ignore(study)
    (finding,) = (one for one in examine(study.write(), fast=False) if one.code == "nothing_unlabelled")
    assert (finding.level, finding.fix) == ("error", 'write "ignore": 4 if that is its value')


def test_a_list_for_training_need_not_be_followed_up(study):
    one_visit_of_each(study)
    path = study.write()
    assert not stops(examine(path, follow_up=False))
    study.cases[0]["split"] = study.cases[1]["split"] = "train"
    assert not stops(examine(study.write()))
    assert codes(examine(path, follow_up=True)) == {"nothing_to_follow", "single_visit"}


def test_the_sentence_is_that_of_the_run(study):
    one_visit_of_each(study)
    (finding, _) = examine(study.write())
    with pytest.raises(UserError) as stopped:
        pair_with_reference(load_datalist(study.write()))
    assert str(finding).startswith(str(stopped.value))


def test_the_fast_part_reads_no_voxels(study, monkeypatch):
    for name in ("read_values", "read_label"):
        monkeypatch.delattr(facts, name)
    assert examine(study.write()) == []


def test_workers_find_the_same(study):
    for spoil in (nan_in_image, other_origin, copied_image):
        spoil(study)
    alone, together = (read_facts_of(study.write(), fast=False, workers=workers) for workers in (1, 3))
    assert [use.file.values for use in alone.uses] == [use.file.values for use in together.uses]


def test_only_the_files_of_a_run_are_examined(study):
    other_origin(study)
    datalist = load_datalist(study.write())
    images = [case.image for case in datalist.cases]
    assert codes(examine(datalist)) == {"grid_differs"}
    assert examine(datalist, only=images) == []


def test_checks_can_be_left_out(study):
    far_away(study)
    assert examine(study.write(), leave_out=["visits_apart"]) == []


def test_folds_of_one_split_only(study):
    for case in study.cases[:2]:
        case["fold"] = 0
    assert examine(study.write()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_header_says_the_doctor_goes_on(study, seed):
    rng = np.random.default_rng(seed)
    whole = np.frombuffer(study.path("b1.nii").read_bytes(), np.uint8)
    path = study.write()
    for _ in range(25):
        spoilt = whole.copy()
        spoilt[rng.integers(40, 348, 6)] = rng.integers(0, 256, 6)
        study.path("b1.nii").write_bytes(spoilt.tobytes())
        assert all(finding.case in ("b1", "") for finding in examine(path, fast=False) if finding.level == "error")


@pytest.mark.parametrize("value", [None, 5, "x", [], {}, [1], {"a": None}, True, -1.5, 1e300])
def test_whatever_the_list_says_the_doctor_goes_on(study, value):
    for key in [*study.content, *study.cases[0]]:
        spoilt = {**study.content, key: value} if key in study.content else study.content
        if key in study.cases[0]:
            spoilt = {**spoilt, "cases": [{**study.cases[0], key: value}, *study.cases[1:], value]}
        study.path("list.json").write_text(json.dumps(spoilt))
        try:
            load_datalist(study.path("list.json"))
        except UserError:
            assert stops(examine(study.path("list.json")))


def test_split_and_data_root(study):
    other_origin(study)
    path = study.write().rename(study.folder.parent / f"{study.folder.name}.json")
    assert examine(path, study.folder, split="train") == []
    assert codes(examine(path, study.folder, split="test")) == {"grid_differs"}
    with pytest.raises(UserError, match="no case is in split 'val'"):
        examine(path, study.folder, split="val")


def test_a_name_of_other_case_is_suggested(study):
    study.cases[0]["image"], study.cases[1]["image"] = "A0.nii", "a1.nii.gz"
    fixes = [finding.fix for finding in examine(study.write())]
    assert fixes == ["there is a0.nii; write its name as it is", "there is a1.nii; write its name as it is"]


def test_rounding_of_the_qform_is_no_disagreement(study):
    study.edit_header("b1.nii", qform_code=1)
    assert examine(study.write()) == []


def test_forms_disagree_by_mm_and_only_where_both_are_set(study):
    placed = nib.load(study.path("b1.nii")).affine[0, 3]
    study.edit_header("b1.nii", qform_code=1, qoffset_x=placed + 7)
    (found,) = examine(study.write())
    assert (found.level, found.case) == ("warning", "b1")
    assert "disagree by up to 7 mm; the sform is used" in found.sentence
    study.edit_header("b1.nii", qform_code=0)
    assert examine(study.write()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ACDC", "MSCMR", "CHAOS_T2", "CVC_ClinicDB", "CVC_ColonDB"])
def test_real_lists_have_no_error_and_no_warning(real_data, name):
    found = examine(real_data / f"{name}.json")
    assert [str(finding) for finding in found if finding.level != "note"] == []
