from __future__ import annotations

import csv

import pytest
from ignite.engine import Engine

from monai_ext.data.case_details import CaseDetails
from monai_ext.handlers.progress import CaseProgress
from monai_ext.handlers.prompt_table import PromptTable

COLUMNS = "case,label,slice,reference,reference_slice,status,recovered,n_pos,n_neg,distance,margin,points"

CHOSEN = {
    "label": "LV",
    "slice": 3,
    "reference": "p1_ed+p1_0",
    "reference_slice": "2+4",
    "status": "ok",
    "recovered": True,
    "n_pos": 1,
    "n_neg": 2,
    "distance": 0.1234567890123,
    "margin": None,
    "points": [[3.5, 11.0, 1.0], [0.0, 20.25, 0.0], [19.5, 7.0, 0.0]],
}
ABSENT = {"label": "RV", "slice": 3, "reference_slice": "", "status": "reference_absent"}


def run(tmp_path, rows_of_cases, fail_after=None):
    """An engine over named cases whose details have these rows; returns the engine."""

    def segment(engine, case):
        if case == fail_after:
            raise RuntimeError("failed")
        engine.state.batch = [{"case": case}]
        return [{"details": CaseDetails(rows_of_cases[case])}]

    engine = Engine(segment)
    PromptTable(tmp_path).attach(engine)
    engine.run(list(rows_of_cases), max_epochs=1)
    return engine


def test_one_row_a_structure_and_slice(tmp_path):
    run(tmp_path, {"p1_es": [CHOSEN, ABSENT], "p2_es": [ABSENT]})
    header, *rows = (tmp_path / "prompts.csv").read_text(encoding="utf-8").splitlines()
    assert header == COLUMNS
    assert rows == [
        "p1_es,LV,3,p1_ed+p1_0,2+4,ok,1,1,2,0.1234567890123,,3.5 11 +; 0 20.25 -; 19.5 7 -",
        "p1_es,RV,3,,,reference_absent,,,,,,",
        "p2_es,RV,3,,,reference_absent,,,,,,",
    ]


def test_names_with_commas_and_quotes_survive(tmp_path):
    run(tmp_path, {'a,"b"': [ABSENT]})
    with open(tmp_path / "prompts.csv", newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["case"] == 'a,"b"'


def test_a_second_run_begins_anew(tmp_path):
    run(tmp_path, {"a": [ABSENT]}).run(["a"], max_epochs=1)
    assert len((tmp_path / "prompts.csv").read_text().splitlines()) == 2


def test_nothing_is_written_before_the_last_case(tmp_path):
    with pytest.raises(RuntimeError):
        run(tmp_path, {"a": [ABSENT], "b": []}, fail_after="b")
    assert not list(tmp_path.iterdir())


def test_progress_counts_the_cases_on_stderr(capsys):
    engine = Engine(lambda engine, case: None)
    CaseProgress().attach(engine)
    engine.run([1, 2, 3], max_epochs=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err
    assert err.endswith("\n")


def test_progress_ends_its_line_and_hands_the_error_on(capsys):
    def fail(engine, case):
        raise KeyError("a mistake")

    engine = Engine(fail)
    CaseProgress().attach(engine)
    with pytest.raises(KeyError, match="a mistake"):
        engine.run([1, 2], max_epochs=1)
    assert capsys.readouterr().err.endswith("\n")
