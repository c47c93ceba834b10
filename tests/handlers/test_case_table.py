"""CaseTable on MONAI's own evaluator: the numbers, the bytes, and what is left behind by a failure."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image

from monai_ext.data.case_reader import CaseReader
from monai_ext.errors import UserError, find_user_error
from monai_ext.evaluation.table import Row, read_rows
from monai_ext.handlers.case_table import CaseTable
from monai_ext.metrics.surface import hd95

LABELS = {"organ": 1, "lesion": 3}
SPACING = (0.5, 4.0, 2.0)
AFFINE = np.array([[0, -4.0, 0, 7], [-0.5, 0, 0, 1], [0, 0, 2.0, 3], [0, 0, 0, 1]])
SHAPE = (8, 6, 5)


class Shifted(torch.nn.Module):
    """Takes the image for the mask and moves it by one voxel along the first axis."""

    def forward(self, image):
        return torch.roll(image, 1, dims=2)


def write_volumes(folder: Path, names: list[str]) -> list[dict]:
    """Write images that equal their labels: an organ of 2 x 3 x 3 voxels, and a lesion of one voxel."""
    cases = []
    for number, name in enumerate(names):
        mask = np.zeros(SHAPE, dtype=np.uint8)
        mask[2:4, 1:4, 1:4], mask[5, 4, number] = 1, 3
        path = str(folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(mask, AFFINE), path)
        case = {"case": name, "patient": "P", "visit": number + 1.0, "reference": ["a", "b"], "fold": 2}
        cases.append({**case, "image": path, "label": path})
    return cases


def evaluate(cases: list[dict], handler: CaseTable, network: torch.nn.Module | None = None) -> None:
    load = [
        LoadImaged(keys="image", reader=CaseReader()),
        LoadImaged(keys="label", reader=CaseReader(label=True), allow_missing_keys=True),
        EnsureChannelFirstd(keys=["image", "label"], allow_missing_keys=True),
    ]
    loader = DataLoader(Dataset(cases, Compose(load)), batch_size=1)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=network or Shifted(),
        inferer=SimpleInferer(),
        postprocessing=lambda data: {**data, "pred": data["pred"].round()},
        val_handlers=[handler],
    )
    evaluator.run()


def table(folder: Path, **options) -> CaseTable:
    return CaseTable(folder, LABELS, dataset="toy", algorithm="shift", **options)


def rows_by_name(folder: Path) -> dict[tuple[str, str, str], Row]:
    return {(row.case, row.label, row.metric): row for row in read_rows(folder / "metrics.csv")}


def test_rows_are_those_of_the_masks(tmp_path):
    evaluate(write_volumes(tmp_path, ["v 1", "v2"]), table(tmp_path / "out", run=4))
    rows = rows_by_name(tmp_path / "out")
    assert len(rows) == 2 * 2 * 7
    dice = rows["v 1", "organ", "dice"]
    assert dice.value == pytest.approx(0.5)
    assert (dice.task, dice.algorithm, dice.patient, dice.visit) == ("toy", "shift", "P", "1")
    assert (dice.reference, dice.fold, dice.run, dice.status) == ("a+b", "2", "4", "ok")
    assert rows["v2", "lesion", "hd95_mm"].value == pytest.approx(SPACING[0])


def test_distances_are_in_the_millimetres_of_the_file(tmp_path):
    evaluate(write_volumes(tmp_path, ["v1"]), table(tmp_path / "out"))
    rows = rows_by_name(tmp_path / "out")
    organ = np.zeros(SHAPE, dtype=bool)
    organ[2:4, 1:4, 1:4] = True
    expected = hd95(organ, np.roll(organ, 1, 0), SPACING)
    assert rows["v1", "organ", "hd95_mm"].value == pytest.approx(expected)
    assert rows["v1", "organ", "volume_ml"].value == pytest.approx(18 * 4 / 1000)


def test_slices_are_those_that_are_cut(tmp_path):
    """The second stored axis has the largest spacing; the organ lies on three of its slices."""
    cases = write_volumes(tmp_path, ["v1"])

    class FirstSliceOnly(torch.nn.Module):
        def forward(self, image):
            kept = torch.zeros_like(image)
            kept[:, :, :, 1] = image[:, :, :, 1]
            return kept

    evaluate(cases, table(tmp_path / "out"), FirstSliceOnly())
    row = rows_by_name(tmp_path / "out")["v1", "organ", "dice_slice_mean"]
    assert row.value == pytest.approx(1 / 3)

    evaluate(cases, table(tmp_path / "out", slice_axis="S"), FirstSliceOnly())
    row = rows_by_name(tmp_path / "out")["v1", "organ", "dice_slice_mean"]
    assert row.value == pytest.approx(2 * 2 / (2 + 6))


def test_a_missed_label_is_counted(tmp_path):
    class Nothing(torch.nn.Module):
        def forward(self, image):
            return image * 0

    evaluate(write_volumes(tmp_path, ["v1"]), table(tmp_path / "out"), Nothing())
    row = rows_by_name(tmp_path / "out")["v1", "organ", "hd95_mm"]
    assert row.status == "pred_empty"
    assert row.value == pytest.approx(math.hypot(8 * 0.5, 6 * 4, 5 * 2))


def test_channels_of_labels_may_overlap(tmp_path):
    class Channels(torch.nn.Module):
        def forward(self, image):
            return torch.cat([image > 0, image == 3], dim=1).float()

    evaluate(write_volumes(tmp_path, ["v1"]), table(tmp_path / "out"), Channels())
    rows = rows_by_name(tmp_path / "out")
    assert rows["v1", "organ", "dice"].value == pytest.approx(2 * 18 / (18 + 19))
    assert rows["v1", "lesion", "dice"].value == 1.0


def test_frames_are_in_pixels(tmp_path):
    frame = np.zeros((9, 7), dtype=np.uint8)
    frame[2, 3] = 1
    Image.fromarray(frame).save(tmp_path / "f.png")
    path = str(tmp_path / "f.png")
    handler = CaseTable(tmp_path / "out", {"polyp": 1}, dataset="toy", algorithm="shift")
    evaluate([{"case": "f", "image": path, "label": path}], handler)
    rows = read_rows(tmp_path / "out" / "metrics.csv")
    assert [(row.metric, row.value) for row in rows] == [
        ("dice", 0.0),
        ("dice_slice_mean", 0.0),
        ("hd95_px", 1.0),
    ]
    assert (rows[0].patient, rows[0].visit, rows[0].reference, rows[0].fold) == ("", "", "", "")


def test_same_run_same_bytes(tmp_path):
    cases = write_volumes(tmp_path, ["v1", "v2"])
    for folder in ("one", "two"):
        evaluate(cases, table(tmp_path / folder))
    for name in ("metrics.csv", "summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_files_and_printed_table_agree(tmp_path, capsys):
    evaluate(write_volumes(tmp_path, ["v1", "v2"]), table(tmp_path / "out", fold=0))
    mean = json.loads((tmp_path / "out" / "summary.json").read_text())["labels"]["organ"]["dice"]["mean"]
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == "organ" and row["metric"] == "dice"]
    assert mean == pytest.approx(np.mean([float(row["value"]) for row in rows]))
    assert {row["fold"] for row in rows} == {"0"}
    assert f"{mean:.3f} [" in capsys.readouterr().out


def test_a_failing_case_leaves_nothing(tmp_path):
    cases = write_volumes(tmp_path, ["v1", "v2"])

    class FailsSecond(torch.nn.Module):
        calls = 0

        def forward(self, image):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("broken")
            return image

    with pytest.raises(RuntimeError, match="broken"):
        evaluate(cases, table(tmp_path / "out"), FailsSecond())
    assert not (tmp_path / "out").exists()


def test_a_failing_run_does_not_leave_the_table_of_an_earlier_one(tmp_path):
    cases = write_volumes(tmp_path, ["v1"])
    evaluate(cases, table(tmp_path / "out"))
    assert (tmp_path / "out" / "metrics.csv").is_file()
    del cases[0]["label"]
    with pytest.raises(Exception, match="v1"):
        evaluate(cases, table(tmp_path / "out"))
    assert not (tmp_path / "out" / "metrics.csv").exists()


@pytest.mark.parametrize("option", [{"seed": -1}, {"nsd_tolerance_mm": -1.0}, {"nsd_tolerance_mm": math.inf}])
def test_options_that_would_stop_the_run_at_its_end_are_refused_before(option, tmp_path):
    with pytest.raises(UserError, match=next(iter(option))):
        table(tmp_path, **option)


def test_a_case_without_label_is_named(tmp_path):
    [case] = write_volumes(tmp_path, ["v1"])
    del case["label"]
    with pytest.raises(Exception, match="v1") as raised:
        evaluate([case], table(tmp_path / "out"))
    assert "no label" in str(find_user_error(raised.value))


def test_a_mask_on_another_grid_is_refused(tmp_path):
    class Cropped(torch.nn.Module):
        def forward(self, image):
            return MetaTensor(image[..., 1:])

    with pytest.raises(UserError, match=r"case v1: the prediction has shape \(8, 6, 4\)"):
        evaluate(write_volumes(tmp_path, ["v1"]), table(tmp_path / "out"), Cropped())


def test_no_case_is_said(tmp_path):
    with pytest.raises(UserError, match="no case was evaluated"):
        table(tmp_path)._write(None)
