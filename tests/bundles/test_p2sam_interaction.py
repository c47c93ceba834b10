"""The oracle's clicks through MONAI's front door: their curve, and that one click stays what it was."""

from __future__ import annotations

import pytest

from monai_ext.evaluation.curves import read_interaction
from monai_ext.evaluation.table import read_rows


@pytest.fixture
def run_clicks(run_bundle, patient, write_list, tmp_path):
    def run(name: str, **options) -> None:
        given = {"datalist": write_list(patient), "output_dir": str(tmp_path / name), **options}
        run_bundle("p2sam", "inference", "evaluate", "oracle_click", **given)

    return run


def dice_of(path):
    return {(row.case, row.label): (row.value, row.status) for row in read_rows(path) if row.metric == "dice"}


def test_the_last_step_is_the_result_and_the_first_that_of_one_click(run_clicks, tmp_path):
    run_clicks("one")
    run_clicks("three", clicks=3)
    steps = read_interaction(tmp_path / "three" / "interaction.csv")
    assert [row.step for row in steps if row.label == "disc"] == [1, 2, 3]
    at = {n: {(row.case, row.label): (row.value, row.status) for row in steps if row.step == n} for n in (1, 3)}
    assert at[1] == dice_of(tmp_path / "one" / "metrics.csv")
    assert at[3] == dice_of(tmp_path / "three" / "metrics.csv")
    assert {row.step for row in read_interaction(tmp_path / "one" / "interaction.csv")} == {1}


def test_a_run_that_is_started_again_keeps_the_table(run_clicks, tmp_path):
    run_clicks("out", clicks=2)
    before = (tmp_path / "out" / "interaction.csv").read_bytes()
    (tmp_path / "out" / "interaction.csv").unlink()
    run_clicks("out", clicks=2)
    assert (tmp_path / "out" / "interaction.csv").read_bytes() == before
