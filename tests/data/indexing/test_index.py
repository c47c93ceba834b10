from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.indexing.index import (
    Index,
    Options,
    by_name,
    check_cases,
    label_values,
    last_number,
    parse_visit_or_date,
    stem,
)


@pytest.mark.parametrize(
    ("text", "visit"),
    [
        ("03", 3),
        ("2.5", 2.5),
        ("20230415", "2023-04-15"),
        ("2023-04-15", "2023-04-15"),
        ("20231315", None),
        ("20230230", None),
        ("12345678", 12345678),
        ("baseline", None),
        ("", None),
    ],
)
def test_visits_are_numbers_or_dates(text: str, visit: object) -> None:
    assert parse_visit_or_date(text) == visit


@pytest.mark.parametrize(
    ("name", "expected"), [("a.b.nii.gz", "a.b"), ("a.NII", "a"), ("x.jpeg", "x"), ("y.txt", "y.txt")]
)
def test_stems_drop_one_suffix(name: str, expected: str) -> None:
    assert stem(Path(name)) == expected


def test_the_last_number_counts() -> None:
    assert (last_number("patient012_C0"), last_number("img0007"), last_number("none")) == (0, 7, None)


def test_further_files_of_a_name_are_reported() -> None:
    skipped: list[tuple[str, str]] = []
    found = by_name([Path("a/img1.nii"), Path("b/img1.nii"), Path("b/label1.nii")], r"img([0-9]+)", skipped)
    assert found == {"1": Path("a/img1.nii")}
    assert skipped == [("b/img1.nii", "the same name as a/img1.nii, which is taken")]


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 255), (0, 70000), (-1, 0, 3)])
def test_values_are_those_of_a_sort(tmp_path: Path, shapes: Any, values: tuple[int, ...]) -> None:
    label = np.random.default_rng(0).choice(values, shapes.SHAPE).astype(np.int32)
    assert label_values(shapes.save_volume(tmp_path / "l.nii.gz", label)) == set(np.unique(label).tolist())


# Checks


def candidates(*entries: dict[str, Any]) -> Index:
    return Index({"dataset": "d", "labels": {"liver": 1}, "ignore": 4, "cases": list(entries)})


@pytest.fixture
def entry(tmp_path: Path, shapes: Any) -> dict[str, Any]:
    image = shapes.save_volume(tmp_path / "i.nii.gz")
    label = shapes.save_volume(tmp_path / "l.nii.gz", shapes.rings((1,)))
    return {"case": "c", "patient": "p", "image": str(image), "label": str(label)}


def test_sound_cases_are_counted(entry: dict[str, Any], tmp_path: Path) -> None:
    index = candidates(entry, {"case": "d", "image": entry["image"]})
    counts = check_cases(index, tmp_path, Options())
    assert (counts.cases, counts.patients, counts.labelled) == (2, 1, 1)
    assert counts.present == {"liver": 1}


def test_cases_of_one_name_are_all_skipped(entry: dict[str, Any], tmp_path: Path) -> None:
    index = candidates(entry, dict(entry))
    check_cases(index, tmp_path, Options())
    assert index.datalist["cases"] == []
    assert [why for _, why in index.skipped] == ["2 cases have the name 'c'"] * 2


@pytest.mark.parametrize(
    ("key", "values", "reason"),
    [("label", (1, 7), "the label holds the value 7"), ("scribble", (9,), "the scribble holds the value 9")],
)
def test_unknown_values_are_skipped(
    entry: dict[str, Any], tmp_path: Path, shapes: Any, key: str, values: tuple[int, ...], reason: str
) -> None:
    entry[key] = str(shapes.save_volume(tmp_path / "bad.nii.gz", shapes.rings(values)))
    index = candidates(entry)
    check_cases(index, tmp_path, Options())
    assert reason in index.skipped[0][1]
    assert check_cases(candidates(entry), tmp_path, Options(headers_only=True)).present is None


def test_a_sheared_image_is_skipped(entry: dict[str, Any], tmp_path: Path, shapes: Any) -> None:
    sheared = np.diag([1.0, 1.0, 1.0, 1.0])
    sheared[0, 1] = 0.2
    entry |= {"image": str(shapes.save_volume(tmp_path / "s.nii.gz", affine=sheared)), "label": None}
    index = candidates(entry)
    check_cases(index, tmp_path, Options())
    assert "sheared" in index.skipped[0][1]


def test_a_damaged_file_is_skipped(entry: dict[str, Any], tmp_path: Path) -> None:
    Path(entry["label"]).write_bytes(Path(entry["label"]).read_bytes()[:60])
    index = candidates(entry)
    check_cases(index, tmp_path, Options())
    assert index.skipped[0][0] == "c"


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1)])
def test_a_label_map_stored_the_other_way_round_is_never_given_the_image_s_affine(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, axes: tuple[int, ...]
) -> None:
    mirror = np.eye(4)
    for axis in axes:
        mirror[axis, axis], mirror[axis, 3] = -1, shapes.SHAPE[axis] - 1
    for name in ("a", "b"):
        shapes.save_volume(tmp_path / "m" / "images" / f"{name}.nii.gz")
    shapes.save_volume(tmp_path / "m" / "labels" / "a.nii.gz", shapes.rings((1,)))
    turned = np.flip(shapes.rings((1,), 2.0), axes)
    shapes.save_volume(tmp_path / "m" / "labels" / "b.nii.gz", turned, shapes.oblique() @ mirror)
    for copy in (False, True):
        datalist, report = indexed("folder", tmp_path / "m", labels={"liver": 1}, copy_geometry=copy)
        assert [case.case for case in datalist.cases] == ["a"]
        assert "its axes stored in other directions; resample it" in report
        assert "add --copy_geometry" not in report


def test_an_image_that_links_lead_to_twice_is_one_case(tmp_path: Path, shapes: Any) -> None:
    image = shapes.save_volume(tmp_path / "p1" / "i.nii.gz")
    (tmp_path / "latest").symlink_to(tmp_path / "p1")
    entries = [
        {"case": name, "image": str(path), "label": None}
        for name, path in (("latest", tmp_path / "latest" / "i.nii.gz"), ("p1", image))
    ]
    index = candidates(*entries)
    check_cases(index, tmp_path, Options())
    assert [entry["case"] for entry in index.datalist["cases"]] == ["p1"]
    assert index.skipped == [(str(tmp_path / "latest" / "i.nii.gz"), "a link to the image of the case 'p1'")]
