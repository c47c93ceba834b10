"""InteractionTable on an evaluator: Dice and status of every step, on the grid of the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor

from monai_ext.data.case_details import CaseDetails
from monai_ext.engines.case_evaluator import CaseEvaluator
from monai_ext.errors import UserError
from monai_ext.evaluation.case_metrics import case_rows
from monai_ext.evaluation.curves import read_interaction
from monai_ext.handlers.interaction_table import InteractionTable
from monai_ext.inferers.case_inferer import CaseInferer

LABELS = {"organ": 1, "lesion": 3, "cyst": 4}
SHAPE = (8, 6, 5)


class Growing(CaseInferer):
    """Gives the image's value where it is known: a third of the rows more at each step."""

    def segment_case(self, inputs, network, *args, **entries):
        masks = [torch.cat([inputs == value for value in LABELS.values()], dim=1).float() for _ in range(3)]
        for rows, mask in zip((3, 5, 8), masks, strict=True):
            mask[:, :, rows:] = 0
        return MetaTensor(masks[-1]), CaseDetails(steps=[mask[0] for mask in masks])


def to_masks(data):
    """As a bundle's postprocessing: one integer mask of the channels."""
    values = torch.tensor([0, *LABELS.values()])
    background = torch.full((1, *SHAPE), 0.5)
    return {**data, "pred": values[torch.cat([background, data["pred"]]).argmax(dim=0)][None]}


def make_case(name, ignored=False):
    label = np.zeros(SHAPE, dtype=np.int64)
    label[1:7, 1:4, 1:4], label[6, 5, 0] = 1, 3
    image = label.copy()
    image[2, 0, 0] = 4 if name == "spurious" else 0
    if ignored:
        label[6, 1:4, 1:4] = 9
    return {
        "case": name,
        "patient": "P",
        "image": torch.tensor(image)[None].float(),
        "label": torch.tensor(label)[None],
    }


def evaluate(cases, tmp_path, **options):
    handler = InteractionTable(tmp_path, LABELS, "toy", "growing", to_masks, **options)
    CaseEvaluator(
        device=torch.device("cpu"),
        dataset=Dataset(cases),
        network=torch.nn.Identity(),
        inferer=Growing(),
        postprocessing=to_masks,
        handlers=[handler],
    ).run()
    return read_interaction(tmp_path / "interaction.csv")


@pytest.mark.parametrize("ignored", [False, True])
def test_each_step_is_measured_as_the_metrics_are(tmp_path, ignored):
    case = make_case("spurious", ignored)
    rows = evaluate([case], tmp_path, ignore=9, run=2)
    assert {(row.task, row.algorithm, row.case, row.patient, row.run) for row in rows} == {
        ("toy", "growing", "spurious", "P", "2")
    }
    reference, image = case["label"][0].numpy(), case["image"][0].numpy()
    for step, known in enumerate((3, 5, 8), start=1):
        prediction = image * (np.arange(8) < known)[:, None, None]
        expected = [
            (label, value, status)
            for label, metric, value, status in case_rows(reference, prediction, LABELS, None, ignore=9)
            if metric == "dice"
        ]
        assert [(row.label, row.value, row.status) for row in rows if row.step == step] == expected


def test_every_status_has_its_value(tmp_path):
    rows = evaluate([make_case("spurious"), make_case("plain")], tmp_path)
    found = {(row.case, row.label, row.step): (row.value, row.status) for row in rows}
    assert len(rows) == 2 * 3 * 3
    assert found["plain", "organ", 3] == (1.0, "ok")
    assert found["plain", "lesion", 1] == (0.0, "pred_empty")
    assert found["spurious", "cyst", 1] == (0.0, "ref_empty")
    assert found["plain", "cyst", 1] == (None, "both_empty")


def test_a_case_without_label_is_refused(tmp_path):
    case = make_case("plain")
    del case["label"]
    with pytest.raises(UserError, match="case plain has no label"):
        evaluate([case], tmp_path)
    assert not (tmp_path / "interaction.csv").exists()
