"""Tables and the alpha curve of what ``benchmarks/auxol_streams.py`` measured.

``python benchmarks/auxol_tables.py [TABLE.csv ...] [--figure alpha.png]``; without tables those of the bundle's
documents. All numbers are of the last half of each stream. Of several orders of a stream a patient's numbers are
averaged first, over those orders in which it is in the last half: a patient counts once, whatever the number of orders.
Intervals are 95 %, patients resampled; tests are signed-rank tests over patients, adjusted by Holm for all tests of a
table. Tables of ``--only`` (``<data set>_<order>_more.csv``) add columns to the rows of their order.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_ext.evaluation.curves import COLOURS
from monai_ext.evaluation.statistics import (
    holm,
    percentile_intervals,
    resampled_means,
    signed_rank,
)

RESULTS = Path(__file__).parents[1] / "bundles" / "auxol" / "docs" / "results" / "streams"
WHOLE = "mean"
KEY = ("task", "order", "prompt", "case", "slice", "label")
METHODS = ("sam", "ellipse", "mean_crop", "memory", "auxol_0", "auxol_25", "auxol_50", "auxol_100", "own")
CLAIMS = (("auxol_100", "sam"), ("auxol_100", "own"))
"""The paper's: it learns, and the fusion is better than either part."""

FURTHER = tuple(("auxol_100", other) for other in ("half", "single", "fifo", "memory", "mean_crop", "auxol_50"))
LEARNING = ("sam", "auxol_25", "auxol_100", "direct", "below_85", "pseudo_25", "pseudo_0")
WAYS = (("auxol_100", "direct"), ("auxol_100", "below_85"), ("pseudo_25", "auxol_25"), ("pseudo_0", "sam"))
"""Ways to learn, and what each is compared with."""

THRESHOLD = 0.85
Row = Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """First minus second on the same slices."""

    mean: float
    low: float
    high: float
    p: float
    patients: int


def read(paths: Iterable[Path]) -> list[Row]:
    """Read the rows of the last half of each stream; ``fresh`` marks the first slice of its patient."""
    found: list[Row] = []
    for rows in _runs(paths):
        middle = (max(int(row["step"]) for row in rows) + 1) / 2
        seen: set[tuple[str, ...]] = set()
        for row in rows:
            key = (row["prompt"], row["label"], row["patient"])
            fresh = key not in seen
            seen.add(key)
            if int(row["step"]) >= middle:
                found.append({**row, "fresh": "yes" if fresh else ""})
    return found


def _runs(paths: Iterable[Path]) -> Iterator[list[dict[str, str]]]:
    """Yield the rows of each order, with the columns of its further table."""
    whole: dict[tuple[Path, str], dict[tuple[str, ...], dict[str, str]]] = {}
    more: dict[tuple[Path, str], dict[tuple[str, ...], dict[str, str]]] = {}
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            rows = {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}
        (more if path.stem.endswith("_more") else whole)[path.parent, path.stem.removesuffix("_more")] = rows
    for name, rows in whole.items():
        further = more.get(name, rows)
        if further.keys() != rows.keys():
            raise SystemExit(f"{name[1]} and {name[1]}_more are not of the same stream")
        yield [
            {column: row.get(column) or further[key].get(column, "") for column in {**row, **further[key]}}
            for key, row in rows.items()
        ]


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, list[Row]]]:
    """Yield data set, prompt, structure and rows; first all rows of a data set, then each structure and modality."""
    for task, prompt, here in streams(rows):
        labels = list(dict.fromkeys(row["label"] for row in here))
        modalities = list(dict.fromkeys(row["modality"] for row in here))
        yield task, prompt, WHOLE if len(labels) > 1 else labels[0], here
        for column, names in (("label", labels), ("modality", modalities)):
            for name in names if len(names) > 1 else []:
                yield task, prompt, f"- {name}", [row for row in here if row[column] == name]


def streams(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield data set, prompt and rows."""
    for task, prompt in dict.fromkeys((row["task"], row["prompt"]) for row in rows):
        yield task, prompt, [row for row in rows if (row["task"], row["prompt"]) == (task, prompt)]


def having(rows: Sequence[Row], *columns: str) -> list[Row]:
    """Return the rows in which these methods were run."""
    return [row for row in rows if all(row.get(column) for column in columns)]


def shares(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Return the weight of each row: one over the orders in which its patient has such rows."""
    orders: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        orders.setdefault((row["patient"], row["label"]), set()).add(row["order"])
    return np.array([1 / len(orders[row["patient"], row["label"]]) for row in rows])


def mean(rows: Sequence[Row], column: str) -> float:
    """Mean over the orders of each patient, then over the slices of each structure, then over structures."""
    values, weights = np.array([float(row[column]) for row in rows]), shares(rows)
    names = np.array([row["label"] for row in rows])
    return float(np.mean([np.average(values[names == one], weights=weights[names == one]) for one in np.unique(names)]))


def compare(rows: Sequence[Row], first: str, second: str) -> Difference:
    """Compare two columns; the mean over structures as :func:`mean`, the test with one number a patient."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    names = sorted({row["patient"] for row in rows})
    patients = np.array([names.index(row["patient"]) for row in rows], dtype=np.int64)
    weights = shares(rows)
    values: NDArray[np.float64] = np.array([float(row[first]) - float(row[second]) for row in rows])
    sums, counts = np.zeros((len(names), len(labels))), np.zeros((len(names), len(labels)))
    for number, label in enumerate(labels):
        chosen = np.array([row["label"] == label for row in rows])
        pair = np.stack([values * weights, weights], axis=1)[chosen]
        sums[:, number], counts[:, number] = (np.bincount(patients[chosen], column, len(names)) for column in pair.T)
    means = np.nanmean(resampled_means(sums, counts), axis=1, keepdims=True)
    low, high = percentile_intervals(means)
    of_patients = sums.sum(1) / counts.sum(1)
    middle = float((sums.sum(0) / counts.sum(0)).mean())
    return Difference(middle, float(low[0]), float(high[0]), signed_rank(of_patients).p, len(names))


def show(one: Difference, p: float | None = None) -> str:
    """Lay out a difference."""
    if one.patients == 1:
        return f"{one.mean:+.3f} (one patient)"
    return f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" + ("" if p is None else f", p {p:.2g}")


def main_table(rows: Sequence[Row], methods: Sequence[str] = METHODS) -> None:
    """Print the Dice of all methods, and AuxOL against the better of SAM and the ellipse; tests of whole streams."""
    lines, differences = [], []
    for task, prompt, label, here in groups(rows):
        better = max(("sam", "ellipse"), key=lambda column: mean(here, column))
        differences.append(compare(here, "auxol_100", better))
        slices = len({(row["order"], row["case"], row["slice"]) for row in here})
        head = [task, prompt, label, str(slices), str(differences[-1].patients)]
        scores = ((column, having(here, column)) for column in methods)
        lines.append([*head, *(f"{mean(run, column):.3f}" if run else "" for column, run in scores), better])
    tested = [not line[2].startswith("- ") and one.patients > 1 for line, one in zip(lines, differences, strict=True)]
    adjusted = iter(holm([one.p for one, test in zip(differences, tested, strict=True) if test]))
    title = ["set", "prompt", "structure", "slices", "patients", *methods, "better of two", "auxol_100 minus better"]
    shown = [show(one, next(adjusted) if test else None) for one, test in zip(differences, tested, strict=True)]
    table(title, [[*line, one] for line, one in zip(lines, shown, strict=True)])


def pairs_table(rows: Sequence[Row], pairs: Sequence[tuple[str, str]], tested: bool) -> None:
    """Print paired differences of whole streams."""
    whole = list(streams(rows))
    found = [[compare(run, *pair) if (run := having(here, *pair)) else None for pair in pairs] for _, _, here in whole]
    adjusted = iter(holm([one.p for line in found for one in line if one and one.patients > 1]))
    lines = []
    for (task, prompt, _), line in zip(whole, found, strict=True):
        cells = [
            "" if one is None else show(one, next(adjusted) if tested and one.patients > 1 else None) for one in line
        ]
        lines.append([task, prompt, *cells])
    table(["set", "prompt", *(f"{first} - {second}" for first, second in pairs)], lines)


def ways_table(rows: Sequence[Row]) -> None:
    """Print DirectOL, the threshold and pseudo-labels, each on the rows in which it was run, and who corrects less."""
    methods = [column for column in LEARNING if having(rows, column)]
    pairs = [pair for pair in WAYS if having(rows, *pair)]
    chosen = [row for row in rows if any(row.get(one) for pair in pairs for one in pair if one in LEARNING[3:])]
    lines = []
    for task, prompt, here in streams(chosen):
        scores = [f"{mean(run, column):.3f}" if (run := having(here, column)) else "" for column in methods]
        differences = [show(compare(run, *pair)) if (run := having(here, *pair)) else "" for pair in pairs]
        spared = [float(row["below_85"]) for row in having(here, "below_85")]
        share = f"{np.mean([score < THRESHOLD for score in spared]):.2f}" if spared else ""
        lines.append([task, prompt, *scores, share, *differences])
    table(["set", "prompt", *methods, "corrected at 0.85", *(f"{one} - {other}" for one, other in pairs)], lines)


def table(title: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print Markdown."""
    print("| " + " | ".join(title) + " |\n|" + "---|" * len(title))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def draw_alpha(paths: Sequence[Path], figure_path: Path) -> None:
    """Draw alpha of each learner over its corrections (paper, Fig. 6): 1 is SAM alone, 0 the network alone.

    Rows are kinds of prompts. Data sets of one structure share the first column, each other has its own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[tuple[str, str, str], list[float]] = {}
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["order"] == "0" and row["alpha"]:
                    lines.setdefault((row["prompt"], row["task"], row["label"]), []).append(float(row["alpha"]))
    several = [task for task, count in Counter(_structures(lines)).items() if count > 1]
    columns = [""] * any(task not in several for _, task, _ in lines) + several
    figure = Figure(figsize=(3.6 * len(columns) + 0.6, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(columns), squeeze=False, sharey=True)
    for (prompt, task, label), values in lines.items():
        axis = axes[("box", "point").index(prompt), columns.index(task if task in several else "")]
        name = label if task in several else f"{task} {label}"
        axis.plot(range(len(values)), values, label=name, lw=1.3, color=COLOURS[len(axis.lines) % len(COLOURS)])
    for row, prompt in zip(axes, ("box", "point"), strict=True):
        for axis, task in zip(row, columns, strict=True):
            axis.set_title(f"{task} {prompt} prompts".strip(), fontsize=10)
            axis.set_ylim(-0.03, 1.03)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(fontsize=7, loc="upper right")
        row[0].set_ylabel("alpha: weight of SAM")
    for axis in axes[-1]:
        axis.set_xlabel("corrections so far")
    figure.savefig(figure_path, dpi=100, metadata={"Software": None})


def _structures(lines: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return the data set of each structure once."""
    return [task for task, _ in dict.fromkeys((task, label) for _, task, label in lines)]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tables", nargs="*", type=Path)
    parser.add_argument("--figure", type=Path, help="draw alpha")
    options = parser.parse_args()
    paths = options.tables or sorted(RESULTS.glob("*.csv"))
    rows = read(paths)
    print("Dice over the last half\n")
    main_table(rows)
    print("The paper's claims, over the last half\n")
    pairs_table(rows, CLAIMS, tested=True)
    print("Further differences, over the last half\n")
    pairs_table(rows, FURTHER, tested=False)
    print("At first contact with a patient: the first slice of each, in the last half\n")
    main_table([row for row in rows if row["fresh"]], ("sam", "ellipse", "mean_crop", "auxol_100"))
    if any(having(rows, column) for column in LEARNING[3:]):
        print("Other ways to learn, over the last half of the orders in which they were run\n")
        ways_table(rows)
    if options.figure:
        draw_alpha(paths, options.figure)


if __name__ == "__main__":
    main()
