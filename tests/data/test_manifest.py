from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from monai_ext.data.manifest import Case, DataList, has_year_last, load_datalist, parse_visit
from monai_ext.errors import UserError


def entry(name: str = "a", **keys: Any) -> dict[str, Any]:
    return {"case": name, "image": "image.png", **keys}


def content(*cases: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"dataset": "D", "modality": "MR", "labels": {"RV": 1, "LV": 3}, "cases": list(cases), **keys}


def load(folder: Path, listed: Any, **options: Any) -> DataList:
    """Load a list whose images exist."""
    (folder / "image.png").touch()
    text = listed if isinstance(listed, str) else json.dumps(listed)
    (folder / "list.json").write_text(text, encoding="utf-8")
    return load_datalist(folder / "list.json", **options)


def refuse(folder: Path, listed: Any, match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(folder, listed, **options)
    assert "\n" not in str(caught.value)


def test_minimal_list(tmp_path: Path) -> None:
    datalist = load(tmp_path, {"dataset": "D", "labels": {"x": 255}, "cases": [entry()]})
    assert (datalist.modality, datalist.ignore, datalist.labels) == (None, None, {"x": 255})
    assert datalist.cases[0].image == str(tmp_path / "image.png")


def test_further_keys_are_kept(tmp_path: Path) -> None:
    datalist = load(tmp_path, content(entry(phase="ES", modality="CT", nested={"a": [1]}), licence="CC0"))
    assert datalist.cases[0].extra == {"phase": "ES", "nested": {"a": [1]}}
    assert datalist.cases[0].modality == "CT"
    assert datalist.model_extra == {"licence": "CC0"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{'dataset'", r"list\.json: the data list is not JSON \(.*line 1, column 2\)"),
        ("", "is not JSON"),
        ("[]", "the data list must be an object"),
        ('{"training": []}', "key 'dataset' is missing; add it"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 30 + "1" + "}" * 30, "nested too deep"),
        ('{"dataset": "D", "dataset": "E"}', "has the key 'dataset' twice"),
        ('{"visit": NaN}', "holds NaN"),
        ("9" * 5000, "the data list"),
    ],
)
def test_text_that_is_no_data_list(tmp_path: Path, text: str, match: str) -> None:
    refuse(tmp_path, text, match)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@given(key=st.sampled_from(["dataset", "modality", "labels", "ignore", "cases", *Case.model_fields]), value=JSON)
def test_any_value_is_read_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    listed = content(entry(**({key: value} if key in Case.model_fields else {})))
    listed |= {key: value} if key in listed else {}
    try:
        load(tmp_path_factory.getbasetemp(), listed)
    except UserError as error:
        sentence = str(error)
    else:
        sentence = ""
    assert "\n" not in sentence


def test_list_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.json: there is no such data list; check --datalist"):
        load_datalist(tmp_path / "no.json")
    with pytest.raises(UserError, match="cannot be read"):
        load_datalist(tmp_path)
    (tmp_path / "latin.json").write_bytes('{"dataset": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_datalist(tmp_path / "latin.json")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(51 * 2**20)
    with pytest.raises(UserError, match="at most 50 MB"):
        load_datalist(tmp_path / "huge.json")


@pytest.mark.parametrize(
    ("listed", "match"),
    [
        (content(), "has no cases"),
        (content({"image": "image.png"}), r"cases\[0\], key 'case' is missing; add it"),
        (content({"case": "a"}), "case 'a', key 'image' is missing; add it"),
        (content(entry(), entry("b", image=3)), "case 'b', key 'image' must be text in quotes, not 3"),
        (content(entry(patient=12)), "case 'a', key 'patient' must be text in quotes, not 12"),
        (content(entry(fold="1")), "case 'a', key 'fold' must be a whole number, not \"1\""),
        (content("a"), r"cases\[0\] must be an object .*, not \"a\""),
        (content(cases={}), r"key 'cases' must be a list \[\.\.\.\], not {}"),
        (content(entry(), labels=["RV"]), "key 'labels' must be an object"),
        (content(entry(), labels={}), "key 'labels' is empty"),
        (content(entry(".hidden")), "'.hidden' would make hidden files"),
        (content(entry(), labels={"macro": 1}), "'macro' is what means over labels are called"),
        (content(entry(), labels={"RV": 0}), "'RV' has the value 0; label values are whole numbers above 0"),
        (content(entry(), labels={"RV": True}), "'RV' has the value True"),
        (content(entry(), labels={"RV": 1.0}), "'RV' has the value 1.0"),
        (content(entry(), labels={"RV": 1, "LV": 1}), "'RV' and 'LV' have the same value 1"),
        (content(entry(), ignore=3), "key 'ignore' is 3, which is the value of 'LV'"),
        (content(entry(), ignore=0), "key 'ignore' is 0; it must be above 0"),
        (content(entry(), ignore="4"), "key 'ignore' must be a whole number"),
        (content(entry(), entry("b"), entry()), "2 cases have the name 'a'"),
        (content(entry(reference_image="image.png")), "has 1 files in 'reference_image' and 0 in"),
    ],
)
def test_wrong_structure_is_one_sentence(tmp_path: Path, listed: Any, match: str) -> None:
    refuse(tmp_path, listed, match)


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\\b", "..", "a\nb", "a\x00", "a\u2028b", "é" * 101])
def test_name_that_is_no_file_name(tmp_path: Path, name: str) -> None:
    refuse(tmp_path, content(entry(name)), "case .* key 'case' ")


@pytest.mark.parametrize("name", ["patient 1", "Sjögren-01.v2", "患者"])
def test_name_with_spaces_or_unicode(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, content(entry(name))).cases[0].case == name


@pytest.mark.parametrize(("key", "values"), [("split", ("train", "test")), ("fold", (0, 1))])
def test_patient_in_two_groups(tmp_path: Path, key: str, values: tuple[Any, Any]) -> None:
    one, other = (entry(name, patient="P", **{key: value}) for name, value in zip("ab", values, strict=True))
    refuse(
        tmp_path,
        content(one, other),
        f"patient 'P' is in {key} {values[0]!r} .case 'a'. and in {values[1]!r}",
    )
    assert len(load(tmp_path, content(one, {**other, "patient": "Q"}, entry("c", patient="P"))).cases) == 3


# Visits


@pytest.mark.parametrize(
    ("written", "visit"),
    [
        *((0, 0), (-1, -1), (2.5, 2.5), ("3", 3), (" 3 ", 3), ("2.5", 2.5), ("20230415", 20230415)),
        ("2023-04-15", datetime.date(2023, 4, 15)),
    ],
)
def test_visit_is_a_number_or_a_date(tmp_path: Path, written: Any, visit: Any) -> None:
    read = load(tmp_path, content(entry(visit=written))).cases[0].visit
    assert read == visit
    assert type(read) is type(visit)


@pytest.mark.parametrize(
    "written", ["baseline", "2023-13-40", "15.04.2023", "2023-4-5", "", True, [1], {}, "1e5", 10**400]
)
def test_visit_that_is_neither(tmp_path: Path, written: Any) -> None:
    refuse(
        tmp_path,
        content(entry(visit=written)),
        r"case 'a', key 'visit' .* is no visit; write a number .* or a date",
    )


@settings(deadline=None)
@given(st.dates())
def test_every_date_is_read(date: datetime.date) -> None:
    assert parse_visit(date.isoformat()) == date


@settings(deadline=None)
@given(st.integers(-(10**17), 10**17) | st.floats(-1e17, 1e17))
def test_every_number_is_read(number: float) -> None:
    assume(not has_year_last(str(number)))
    assert parse_visit(number) == number


@pytest.mark.parametrize("value", ["15012024", 15012024, "01022024", "12312023", " 01011999 "])
def test_a_date_whose_year_is_last_is_no_number(value: object) -> None:
    with pytest.raises(ValueError, match="year is last"):
        parse_visit(value)


@pytest.mark.parametrize("value", ["20240115", 20240115, "45672024", "15012199", "1502024"])
def test_other_eight_digits_are_numbers(value: object) -> None:
    assert parse_visit(value) == int(value)


@pytest.mark.parametrize("spelled", ["p 1", "P 1 ", "P  1"])
def test_one_patient_is_spelled_in_one_way(tmp_path: Path, spelled: str) -> None:
    one, other = entry("a", patient="P 1", split="train"), entry("b", patient=spelled, split="test")
    refuse(tmp_path, content(one, other), f"patients 'P 1' .case 'a'. and '{spelled}' .case 'b'. differ in capitals")


def test_numbers_and_dates_do_not_mix_within_a_patient(tmp_path: Path) -> None:
    one, other = entry("a", patient="P", visit=1), entry("b", patient="P", visit="2023-01-01")
    refuse(
        tmp_path,
        content(one, other),
        "patient 'P' has a date as visit of case 'b' and a number as visit of case 'a'",
    )
    assert len(load(tmp_path, content(one, {**other, "patient": "Q"})).cases) == 2


# Files


def test_data_root_is_the_folder_of_the_list_or_given(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "other.png").touch()
    listed = content(entry(image="other.png"))
    refuse(tmp_path, listed, "case 'a', key 'image': there is no file .*other.png; correct it or set --data_root")
    found = load(tmp_path, listed, data_root=tmp_path / "root").cases[0].image
    assert found == str(tmp_path / "root" / "other.png")
    refuse(tmp_path, listed, "there is no such folder; set --data_root", data_root=tmp_path / "nowhere")


def test_paths_may_not_leave_the_data_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.png").touch()
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "up").symlink_to(tmp_path)
    for name in ("../outside.png", "link.png", "up/outside.png"):
        refuse(root, content(entry(image=name)), "leads out of the data root")
        refuse(
            root,
            content(entry(reference_image=[name], reference_label=["image.png"])),
            "'reference_image': .* leads",
        )
    assert load(root, content(entry(image=str(tmp_path / "outside.png")))).cases[0].image.endswith("outside.png")
    (root / "inner.png").symlink_to(root / "image.png")
    assert load(root, content(entry(image="inner.png"))).cases[0].image == str(root / "inner.png")


@pytest.mark.parametrize("name", ["a\x00b.png", "x" * 5000 + ".png"])
def test_impossible_path(tmp_path: Path, name: str) -> None:
    refuse(tmp_path, content(entry(image=name)), "case 'a', key 'image': .* cannot be a file")


def test_folder_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    refuse(tmp_path, content(entry(image="series")), "is a folder")


@pytest.mark.parametrize("key", ["label", "scribble"])
def test_labels_must_exist(tmp_path: Path, key: str) -> None:
    refuse(tmp_path, content(entry(**{key: "gone.png"})), f"case 'a', key '{key}': there is no file")


def test_own_references_become_lists_of_absolute_paths(tmp_path: Path) -> None:
    listed = content(entry(reference_image="image.png", reference_label=["image.png"]))
    case = load(tmp_path, listed).cases[0]
    assert case.reference_image == case.reference_label == [str(tmp_path / "image.png")]


# Selection


def test_split_and_fold_select(tmp_path: Path) -> None:
    listed = content(
        entry("a", split="train", fold=0), entry("b", split="test", fold=1), entry("c", split="test", fold=0)
    )
    assert [case.case for case in load(tmp_path, listed, split="test").cases] == ["b", "c"]
    assert [case.case for case in load(tmp_path, listed, split="test", fold=0).cases] == ["c"]
    refuse(tmp_path, listed, "no case is in split 'val'; the splits there are: 'test', 'train'", split="val")
    refuse(tmp_path, listed, "no case is in fold 1; the folds there are: 0", split="train", fold=1)
    refuse(tmp_path, content(entry()), "no case is in fold 1; the folds there are: none", fold=1)


def test_files_of_other_splits_need_not_exist(tmp_path: Path) -> None:
    listed = content(entry("a", split="train", image="gone.png"), entry("b", split="test"))
    assert [case.case for case in load(tmp_path, listed, split="test").cases] == ["b"]


def test_real_lists_load(real_data: Path) -> None:
    """Further sets may stand beside these."""
    counts = {path.stem: len(load_datalist(path).cases) for path in real_data.glob("*.json")}
    known = {"ACDC": 80, "CHAOS_T2": 16, "CVC_ClinicDB": 16, "CVC_ColonDB": 16, "MSCMR": 35}
    assert {name: counts[name] for name in known} == known
    assert all(counts.values())


def test_without_a_fold_all_other_folds_remain_and_cases_of_no_fold_are_left_out(tmp_path: Path) -> None:
    listed = content(entry("a", fold=0), entry("b", fold=1), entry("c", fold=2), entry("d"))
    names = [[case.case for case in load(tmp_path, listed, without_fold=k).cases] for k in (0, 1, None)]
    assert names == [["b", "c"], ["a", "c"], ["a", "b", "c", "d"]]
    refuse(tmp_path, listed, "no case is in fold 7; the folds there are: 0, 1, 2", without_fold=7)
    refuse(tmp_path, content(entry(fold=0), entry("d")), "all folds but 0 are empty", without_fold=0)
