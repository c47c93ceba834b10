"""The page of a report: its sections, what stands on top and below, and the template that holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from monai_ext.evaluation.report import figures, wording
from monai_ext.evaluation.report.cases import worst_cases
from monai_ext.evaluation.report.comparison import comparison, curves
from monai_ext.evaluation.report.metrics import colour_of, is_linked, is_main, metric_section, shared_metrics
from monai_ext.evaluation.report.provenance import provenance, provenance_warnings, training_text, weights_text
from monai_ext.evaluation.report.sources import Evaluation


@dataclass(frozen=True)
class Choices:
    """What a report shows.

    Attributes:
        worst: how many of the worst cases.
        overlays: whether with their pictures.
        compared: metrics that are tested; None: Dice alone, so that few comparisons are adjusted for.
        title: of the page; None: the data set's name.
    """

    worst: int = 5
    overlays: bool = True
    compared: tuple[str, ...] | None = None
    title: str | None = None


def render(evaluations: Sequence[Evaluation], choices: Choices = Choices()) -> str:
    """Return the page of one or more evaluations of the same cases, the first the one that is compared.

    Raises:
        UserError: where they are not of the same cases, or a chosen metric is not in a table.
    """
    metrics = shared_metrics(evaluations)
    compared = choices.compared or tuple(metrics[:1])
    labels = list(dict.fromkeys(row.label for row in evaluations[0].rows))
    context = {
        "title": choices.title or evaluations[0].rows[0].task,
        "task": evaluations[0].rows[0].task,
        "methods": [evaluation.name for evaluation in evaluations],
        "colours": {evaluation.name: colour_of(number) for number, evaluation in enumerate(evaluations)},
        "labels": labels,
        "size": _size(evaluations[0]),
        "glance": _glance(evaluations, [name for name in metrics if is_main(name)]),
        "sections": [metric_section(evaluations, name, labels) for name in metrics],
        "comparison": comparison(evaluations, compared),
        "curves": curves(evaluations),
        "worst": worst_cases(evaluations, choices.worst, choices.overlays) if choices.worst else None,
        "provenance": provenance(evaluations),
        "definitions": _definitions(evaluations),
        "warnings": _warnings(evaluations),
        "statuses": wording.STATUS_TEXTS,
        "summary": evaluations[0].summary,
        "style": Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8")),
        "most_dots": figures.MOST_DOTS,
        "many": evaluations[0].summary["n_cases"] > figures.MOST_DOTS,
        "linked": is_linked(evaluations),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["groupby_in_order"] = _groups
    return environment.get_template("template.html").render(context)


def _glance(evaluations: Sequence[Evaluation], metrics: Sequence[str]) -> dict[str, Any]:
    """Return the first table: a line a method, its means over labels."""
    several = len(evaluations[0].summary["labels"]) > 1
    lines = []
    for evaluation in evaluations:
        summary = evaluation.summary
        only = next(iter(summary["labels"].values()))
        cells = [wording.interval((summary["macro"] if several else only)[name], name) for name in metrics]
        not_ok = sum(n for status, n in _statuses(evaluation).items() if status != "ok")
        told = f"{not_ok} of {sum(_statuses(evaluation).values())}"
        lines.append((evaluation.name, weights_text(evaluation), training_text(evaluation), cells, told))
    heads = [(wording.metric_title(name), wording.metric_note(name)) for name in metrics]
    return {"heads": heads, "lines": lines, "several": several}


def _definitions(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """Return what the numbers mean, as far as it does not stand beside the metrics."""
    summary = evaluations[0].summary
    interval = summary["confidence_interval"]
    return [
        ("Undefined values", f"{summary['undefined_values']['text']} (policy {summary['undefined_values']['policy']})"),
        ("Mean", f"over {summary['mean_of']}; the mean over labels is that of the labels’ means"),
        (
            "Confidence interval",
            f"{interval['level']:.0%} of the mean, {interval['method']} that resamples each {interval['unit']} with "
            f"all its cases, {interval['draws']} draws, seed {interval['seed']}",
        ),
        *((key.replace("_", " ").capitalize(), text) for key, text in _remarks(summary)),
    ]


def _remarks(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a summary says in a sentence beside its numbers."""
    for key, value in summary.items():
        if isinstance(value, str) and key not in ("task", "algorithm", "mean_of"):
            yield key, value


def _warnings(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return all warnings, those that every method has in common once."""
    per_method = [list(evaluation.summary["warnings"]) for evaluation in evaluations]
    common = [text for text in per_method[0] if all(text in of_method for of_method in per_method)]
    own = [
        f"{evaluation.name}: {text}"
        for evaluation, of_method in zip(evaluations, per_method, strict=True)
        for text in of_method
        if text not in common
    ]
    return [*common, *own, *provenance_warnings(evaluations)]


def _statuses(evaluation: Evaluation) -> dict[str, int]:
    """Count the statuses of all cases and labels."""
    counts: dict[str, int] = {}
    for of_label in evaluation.summary["labels"].values():
        for status, n in next(iter(of_label.values()))["n_by_status"].items():
            counts[status] = counts.get(status, 0) + n
    return counts


def _size(evaluation: Evaluation) -> str:
    summary = evaluation.summary
    return f"{wording.count(summary['n_cases'], 'case')} of {wording.count(summary['n_patients'], 'patient')}"


def _groups(rows: Sequence[Any], key: str | int) -> list[tuple[Any, list[Any]]]:
    """Group rows that follow each other by an attribute or a position, in the order they come."""

    def value(row: Any) -> Any:
        return row[key] if isinstance(key, int) else getattr(row, key)

    return [(name, list(group)) for name, group in groupby(rows, value)]
