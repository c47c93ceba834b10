"""The page of a follow-up run, without labels of its later images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.record import write_record
from monai_ext.evaluation.report.__main__ import main
from monai_ext.evaluation.table import write_table

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])
SHAPE = (30, 26, 6)
VOLUMES = ("case", "patient", "visit", "label", "volume_ml", "change_percent", "longest_mm", "perpendicular_mm")
REVIEW = ("case", "patient", "visit", "label", "slice", "score", "flag", "reason", "method")


def save(path: Path, array: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return str(path)


def box(*corners: tuple[int, int, int, int]) -> np.ndarray:
    """A mask of boxes [x0, x1] x [y0, y1] on slices 1 to 4."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for x0, x1, y0, y1 in corners:
        mask[x0:x1, y0:y1, 1:5] = 1
    return mask


@pytest.fixture
def run(tmp_path) -> Callable[..., Path]:
    """(masks of the later visits, review) -> the output folder of a run."""

    def write(*later: np.ndarray, first: np.ndarray, modality: str = "MR", review: str = "") -> Path:
        out, rng = tmp_path / "out", np.random.default_rng(0)
        cases, rows, scores = [], [], []
        for number, mask in enumerate((first, *later)):
            image = (rng.normal(size=SHAPE) + 3 * mask).astype(np.float32)
            image = 60 * image - 850 * (mask == 0) if modality == "CT" else image
            case = {"case": f"visit{number}", "patient": "p<1>", "visit": f"2024-0{number + 1}-01"}
            case["image"] = save(tmp_path / "data" / f"image{number}.nii.gz", image.astype(np.float32))
            if number:
                save(tmp_path / "out" / "masks" / f"visit{number}.nii.gz", mask)
                volume = mask.sum() * 20 / 1000
                change = 100 * (mask.sum() / first.sum() - 1)
                names = [case["case"], case["patient"], case["visit"]]
                rows.append([*names, "lesion", f"{volume:.3f}", f"{change:.1f}", "20.0", "10.0", "1", "4"])
                flag = "1" if review == "calibrated" else ""
                scores += [[*names, "lesion", "", "0.41", flag, "1 of 4 slices flagged", review]]
                scores += [[*names, "lesion", "2", "0.21", flag, "distance 0.9", review]]
            else:
                case["label"] = save(tmp_path / "data" / "label.nii.gz", mask)
            cases.append(case)
        (tmp_path / "list.json").write_text(
            json.dumps({"dataset": "toy", "modality": modality, "labels": {"lesion": 1}, "cases": cases})
        )
        write_table(out / "volumes.csv", [*VOLUMES, "parts", "slices"], rows)
        served = [[case["case"], "lesion", k, "visit0", k] for case in cases[1:] for k in range(SHAPE[2])]
        write_table(out / "prompts.csv", ["case", "label", "slice", "reference", "reference_slice"], served)
        if review:
            write_table(out / "review.csv", REVIEW, scores)
        write_record(out, config={"reference_visit": None}, datalist=tmp_path / "list.json", data_root=tmp_path)
        return out

    return write


def page_of(folder: Path, *options: str) -> str:
    main([str(folder), "--output", str(folder / "page.html"), *options])
    return (folder / "page.html").read_text()


def test_each_visit_stands_beside_its_reference(run):
    page = page_of(run(box((4, 12, 4, 12)), box((4, 14, 4, 14)), first=box((4, 10, 4, 10))))
    assert 'Patient <span class="case">p&lt;1&gt;</span>' in page
    assert re.findall(r'data-label="Volume">([^<]*)<', page) == ["2.9 ml", "5.1 ml", "8.0 ml"]
    assert re.findall(r'data-label="Change">([^<]*)<', page) == ["–", "+78 %", "+178 %"]
    assert "within error" not in page.partition("</header>")[2].partition("definitions")[2]
    assert page.count("data:image/jpeg") == 2
    assert "Left: visit0, slice 1, annotated. Right: slice 1 of 0-5: largest lesion." in page
    assert "days since 2024-01-01" in page
    assert "No review score was made" in page


def test_each_visit_has_its_own_references(run, tmp_path):
    """An annotated visit that is segmented, too, is compared with the visits before it and never with itself."""
    out = run(box((4, 12, 4, 12)), box((4, 14, 4, 14)), first=box((4, 10, 4, 10)))
    content = json.loads((tmp_path / "list.json").read_text())
    content["cases"][1]["label"] = save(tmp_path / "data" / "label1.nii.gz", box((4, 9, 4, 9)))
    (tmp_path / "list.json").write_text(json.dumps(content))
    write_record(out, config={"reference_visit": "all"}, datalist=tmp_path / "list.json", data_root=tmp_path)
    served = [["visit1", "lesion", k, "visit0", k] for k in range(SHAPE[2])]
    served += [["visit2", "lesion", k, "visit1", k + 1] for k in range(SHAPE[2] - 1)]  # the first does not reach it
    write_table(out / "prompts.csv", ["case", "label", "slice", "reference", "reference_slice"], served)
    page = page_of(out)
    sizes = [f"{side * side * 4 * 0.02:.3g} ml" for side in (6, 5, 8, 10)]
    assert re.findall(r"one part stays, (.*?) → (.*?)\.<", page) == [(sizes[0], sizes[2]), (sizes[1], "8 ml")]
    assert "Left: visit0, slice 1, annotated. Right: slice 1 of 0-5: largest lesion." in page
    assert "Left: visit1, slice 2, annotated. Right: slice 1 of 0-5: largest lesion." in page
    cases = re.findall(r"visit\d", page[page.index("<tbody") : page.index("</table>")])
    assert list(dict.fromkeys(cases)) == ["visit0", "visit1", "visit2"]


def test_references_of_one_file_name_are_told_apart(run, tmp_path):
    out = run(box((4, 12, 4, 12)), box((4, 14, 4, 14)), first=box((4, 10, 4, 10)))
    content = json.loads((tmp_path / "list.json").read_text())
    later = content["cases"][1:]
    for number, (case, side) in enumerate(zip(later, (5, 6), strict=True)):
        mask = save(tmp_path / f"folder{number}" / "mask.nii.gz", box((4, 4 + side, 4, 4 + side)))
        image = save(tmp_path / f"folder{number}" / "image.nii.gz", np.ones(SHAPE, np.float32))
        case |= {"reference_image": image, "reference_label": mask}
    content["cases"] = later
    (tmp_path / "list.json").write_text(json.dumps(content))
    page = page_of(out, "--overlays", "none")
    assert re.findall(r"one part stays, (.*?) → ", page) == ["2 ml", "2.88 ml"]


def test_a_change_that_the_method_itself_can_make_is_marked(run):
    page = page_of(run(box((4, 11, 4, 10)), first=box((4, 10, 4, 10))), "--overlays", "none")
    assert '<span>+17 % <small class="doubt">within error</small></span>' in page
    assert "A change below 75 % is marked" in page


def test_further_annotations_stand_beside_what_was_predicted(run, tmp_path):
    folder = run(box((4, 12, 4, 12)), box((4, 16, 4, 16)), first=box((4, 10, 4, 10)))
    content = json.loads((tmp_path / "list.json").read_text())
    drawn = save(tmp_path / "data" / "drawn.nii.gz", box((4, 13, 4, 10)))
    content["cases"][1]["label"] = drawn
    (tmp_path / "list.json").write_text(json.dumps(content))
    page = page_of(folder)
    assert re.findall(r'data-label="Volume">([^<]*)<', page) == ["2.9 ml", "4.3 ml", "5.1 ml", "11.5 ml"]
    assert page.count(", annotated</small>") == 2
    assert re.findall(r'data-label="Change">([^<]*)<', page) == ["–", "+50 %", "+78 %", "+300 %"]
    assert "Left: visit0, slice 1, annotated." in page  # what it was segmented from


def test_parts_that_came_and_went_are_components(run):
    two, split = box((3, 9, 3, 20), (18, 24, 4, 9)), box((3, 9, 3, 9), (3, 9, 13, 20), (20, 24, 18, 23))
    page = page_of(run(split, first=two))
    assert "lesion: one part split into 2" in page
    assert "part gone, 2.4 ml" in page
    assert "new part, 1.6 ml" in page


@pytest.mark.slow
def test_scores_and_flags_are_named(run):
    page = page_of(run(box((4, 10, 4, 10)), first=box((4, 10, 4, 10)), review="calibrated"))
    assert "1 mask is to be looked at first" in page
    assert "lowest score, score 0.21, to look at" in page


def test_scores_that_are_not_calibrated_are_no_chance(run):
    page = page_of(run(box((4, 10, 4, 10)), first=box((4, 10, 4, 10)), review="uncalibrated"), "--overlays", "none")
    assert "The review scores are not calibrated" in page
    assert "The chance, as calibrated" not in page
    assert "look at it" not in page


def test_pictures_can_be_left_out(run):
    assert "data:image" not in page_of(run(box((4, 10, 4, 10)), first=box((4, 10, 4, 10))), "--overlays", "none")


def test_an_empty_mask_is_shown_where_the_reference_is_largest(run):
    page = page_of(run(box(), first=box((4, 10, 4, 10))))
    assert "lesion not found, largest in the reference" in page
    assert "part gone" in page


def test_a_ct_of_the_lung_is_not_black(run):
    from monai_ext.evaluation.report.follow_up import _window
    from monai_ext.evaluation.report.visits import read_follow_ups
    from monai_ext.evaluation.slice_picture import LUNG_WINDOW

    (patient,) = read_follow_ups(run(box((4, 10, 4, 10)), first=box((4, 10, 4, 10)), modality="CT")).patients
    assert _window(patient.later[0], 2) == LUNG_WINDOW


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no volumes\.csv of a follow-up in it"):
        main([str(tmp_path), "--follow_up", "--output", str(tmp_path / "page.html")])


def test_a_list_that_has_moved_is_named(run, tmp_path):
    folder = run(box((4, 10, 4, 10)), first=box((4, 10, 4, 10)))
    (tmp_path / "list.json").rename(tmp_path / "moved.json")
    with pytest.raises(UserError, match="name it with --datalist"):
        page_of(folder)
    assert "Patient" in page_of(folder, "--datalist", str(tmp_path / "moved.json"))
