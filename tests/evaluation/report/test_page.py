"""The page: what stands in it, that nothing breaks out of it, and that it is the same every time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.compare import compare
from monai_ext.evaluation.curves import StepRow, write_interaction
from monai_ext.evaluation.report.page import Choices, render
from monai_ext.evaluation.report.sources import read_evaluations
from monai_ext.evaluation.summary import summarise
from monai_ext.evaluation.table import read_rows, write_rows

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Tags with their attributes, the text, the cells of all tables; raises where tags do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.cells: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "title"):
            self.words.append(data)
        if self.cells and {"td", "th"} & set(self._open):
            self.cells[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> Iterator[str]:
        yield from (attributes[name] for _, attributes in self.tags if name in attributes)


def page(folders: Sequence[Path], **choices) -> Page:
    return Page(render(read_evaluations(folders), Choices(**choices)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_methods", "labels"),
    [
        (1, ("liver", "spleen", "left kidney", "right kidney")),
        (2, ("liver",)),
        (5, ("liver", "spleen")),
    ],
)
def test_every_number_of_the_summary_stands_in_the_table(outputs, n_methods, labels):
    folders = [outputs(f"method{number}", seed=number, labels=labels) for number in range(n_methods)]
    found = page(folders)
    for folder in folders:
        summary = summarise(read_rows(folder / "metrics.csv"), draws=200)
        for label in labels:
            of_label = summary["labels"][label]["dice"]
            assert f"{of_label['mean']:.3f} [{of_label['ci_low']:.3f}, {of_label['ci_high']:.3f}]" in found.cells
            assert f"{of_label['median']:.3f}" in found.cells
        if len(labels) > 1:
            macro = summary["macro"]["hd95_mm"]
            assert f"{macro['mean']:.1f} [{macro['ci_low']:.1f}, {macro['ci_high']:.1f}]" in found.cells
    assert "1 pred_empty, 1 both_empty" in found.cells
    assert ("against the others" in found.text) == (n_methods > 1)


@pytest.mark.slow
def test_differences_are_those_of_compare(outputs):
    folders = [outputs("ours"), outputs("other", seed=1)]
    found = page(folders)
    for row in compare([folder / "metrics.csv" for folder in folders], "dice", draws=200):
        texts = [f"{value:+.3f}".replace("-", "−") for value in (row.difference, row.ci_low, row.ci_high)]
        assert f"{texts[0]} [{texts[1]}, {texts[2]}]" in found.cells
        assert f"{row.p_holm:.2g}" in found.cells


@pytest.mark.slow
def test_metrics_to_compare_can_be_chosen(outputs):
    folders = [outputs("ours"), outputs("other", seed=1)]
    assert "HD95 in mm: paired differences" not in page(folders).text
    assert "HD95 in mm: paired differences" in page(folders, compared=("dice", "hd95_mm")).text
    with pytest.raises(UserError, match="no rows of the metric wrong"):
        page(folders, compared=("wrong",))


@pytest.mark.slow
def test_same_folders_same_bytes(outputs):
    folders = [outputs("ours"), outputs("other", seed=1)]
    evaluations = read_evaluations(folders)
    assert render(evaluations) == render(read_evaluations(folders))


@pytest.mark.slow
def test_nothing_is_fetched(outputs):
    found = page([outputs("ours"), outputs("other", seed=1)])
    assert {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "base"} == set()
    sources = [*found.attributes("src"), *found.attributes("href")]
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    (policy,) = [value for value in found.attributes("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'")


@pytest.mark.slow
def test_no_name_breaks_out_of_the_page(outputs):
    nasty = "<script>alert('&')</script>\"'><img src=http://x>"
    folders = [outputs(name, labels=[nasty, "b"], cases=[nasty, "c", "d"]) for name in ("ours", "other")]
    for folder in folders:
        rows = [
            replace(row, patient=nasty, algorithm=f"{nasty}{folder.name}", reference=nasty)
            for row in read_rows(folder / "metrics.csv")
        ]
        write_rows(folder / "metrics.csv", rows)
        record = json.loads((folder / "run.json").read_text())
        record |= {"command": nasty, "config": {nasty: nasty}, "versions": {nasty: nasty}}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "summary.json").unlink()
    found = page(folders, title=nasty)
    assert "script" not in {tag for tag, _ in found.tags}
    assert all(source.startswith(("data:image/", "#")) for source in found.attributes("src"))
    assert nasty in found.words
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)


@pytest.mark.slow
def test_tables_have_heads_and_captions_and_pictures_have_texts(outputs):
    found = page([outputs("ours"), outputs("other", seed=1)])
    tags = [tag for tag, _ in found.tags]
    assert tags.count("table") == tags.count("caption") == tags.count("thead")
    assert all("scope" in attributes for tag, attributes in found.tags if tag == "th")
    assert all(attributes.get("alt") for tag, attributes in found.tags if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in found.tags if tag == "svg")
    identifiers = list(found.attributes("id"))
    assert len(set(identifiers)) == len(identifiers)
    assert set(found.attributes("aria-labelledby")) <= set(identifiers)


@pytest.mark.slow
def test_pictures_are_left_out_on_request(outputs):
    folder = outputs("ours")
    assert [tag for tag, _ in page([folder]).tags].count("img") == 5
    assert [tag for tag, _ in page([folder], worst=2).tags].count("img") == 2
    without = page([folder], overlays=False)
    assert "img" not in [tag for tag, _ in without.tags]
    assert "Worst cases" in without.text


def test_other_cases_are_refused(outputs):
    folders = [outputs("ours"), outputs("other", cases=["a", "b", "z", "d", "e", "f"])]
    with pytest.raises(UserError, match="not of the same cases"):
        page(folders)


@pytest.mark.slow
def test_warnings_that_all_methods_share_are_said_once(outputs):
    folders = [outputs("ours", record=False), outputs("other", seed=1, record=False)]
    text = page(folders).text
    assert text.count("bootstrap intervals tend to be too narrow") == 1
    assert "other: there is no run.json" in text


@pytest.mark.slow
def test_definitions_name_hd95_and_the_policy(outputs):
    text = page([outputs("ours")]).text
    assert "95th percentile of surface distances in each direction, then the larger one" in text
    assert "policy worst_value" in text
    assert "200 draws, seed 0" in text


@pytest.mark.slow
def test_values_beyond_the_axis_are_counted(outputs):
    text = page([outputs("ours", labels=["liver"], cases=[f"c{n}" for n in range(60)])]).text
    assert "1 value beyond the axis" in text


@pytest.mark.slow
def test_curves_are_drawn_where_there_are_any(outputs):
    folder = outputs("ours")
    assert "Step by step" not in page([folder]).text
    rows = [
        StepRow("toy", "ours", case, case, "0", "liver", step, "dice", 0.2 * step, "ok")
        for case in "abc"
        for step in range(1, 4)
    ]
    write_interaction(folder / "interaction.csv", rows)
    found = page([folder])
    assert "Dice of liver against the step" in found.text
    assert "0.400 [0.400, 0.400]" in found.cells  # area: the mean height of 0.2, 0.4, 0.6


@pytest.mark.slow
def test_a_long_table_stays_light(outputs):
    folders = [outputs(f"m{n}", seed=n, cases=[f"case{i}" for i in range(300)], overlays=False) for n in range(3)]
    assert len(render(read_evaluations(folders)).encode()) < 500_000


@pytest.mark.slow
def test_no_cell_shows_a_number_that_is_none(outputs):
    found = page(
        [outputs("ours", labels=["liver"], cases=["a", "b"]), outputs("other", labels=["liver"], cases=["a", "b"])]
    )
    told = [word for text in (*found.cells, *found.attributes("aria-label")) for word in re.findall(r"\w+", text)]
    assert not {"nan", "inf", "None"} & set(told)
