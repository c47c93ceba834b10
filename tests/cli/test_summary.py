from __future__ import annotations

from pathlib import Path

from monai_ext.cli.summary import summarise
from monai_ext.evaluation.record import write_record
from monai_ext.evaluation.table import write_table

VOLUMES = (
    *("case", "patient", "visit", "label", "volume_ml", "change_percent", "longest_mm", "perpendicular_mm"),
    *("parts", "slices"),
)
REVIEW = ("case", "patient", "visit", "label", "slice", "score", "flag", "reason", "method")


def fill(folder: Path) -> None:
    for name in ("masks/new.nii.gz", "masks/old.nii.gz", "dicom/old.dcm", "report.html", "uncertainty.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    write_table(folder / "volumes.csv", VOLUMES, [["new", "p", "1", "t", "1.5", "10", "20", "10", "1", "3"]])
    write_table(folder / "review.csv", REVIEW, [["old", "p", "1", "t", "", "0.1", "1", "3 of 4", "m"]])


def test_what_an_earlier_run_has_left_is_not_named(tmp_path, capsys):
    fill(tmp_path)
    write_record(tmp_path, outputs=["masks/new.nii.gz", "volumes.csv"])
    summarise(tmp_path, ["report.html"])
    said = capsys.readouterr().out
    assert "segmented  1 case\n" in said
    assert "new t: 1.5 ml, +10 % of the reference, within the method's error, 20 x 10 mm" in said
    assert "report.html" in said
    assert not {"old", "dicom", "review", "uncertainty"} & set(said.replace(".", " ").replace("/", " ").split())


def test_without_a_record_all_that_is_there_is_named(tmp_path, capsys):
    fill(tmp_path)
    summarise(tmp_path)
    said = capsys.readouterr().out
    assert "segmented  2 cases" in said
    assert "old t: score 0.10" in said
