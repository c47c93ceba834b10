"""What the follow-up session learned: P²SAM's masks as they are, and after AuxOL had learned from the patients before.

``python benchmarks/auxol_session.py [FOLDER]``, of a run with ``session.yaml``; without one that of the bundle's
documents. One run holds both: ``interaction.csv`` has the Dice of each case (3-D) with and without learning, and
``feedback.csv`` that of each structure on each slice, which is corrected where it is below 0.85.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from monai_ext.evaluation.statistics import percentile_intervals, resampled_means, signed_rank

RESULTS = Path(__file__).parents[1] / "bundles" / "auxol" / "docs" / "results" / "session"
GOOD = 0.85


def read(path: Path) -> list[dict[str, str]]:
    """Read a table."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def report(name: str, learned: Iterable[float], without: Iterable[float]) -> None:
    """Print the paired difference of patients: mean, interval, test."""
    one, other = np.fromiter(learned, float), np.fromiter(without, float)
    difference = one - other
    draws = resampled_means(difference[:, None], np.ones((len(difference), 1)))
    low, high = (float(end[0]) for end in percentile_intervals(draws))
    p = signed_rank(difference).p
    print(
        f"| {name} | {len(one)} | {other.mean():.3f} | {one.mean():.3f} | {difference.mean():+.3f} [{low:+.3f}, "
        f"{high:+.3f}] | {p:.2g} |"
    )


def dice_table(rows: Sequence[dict[str, str]]) -> None:
    """Print the Dice of the volumes in both halves of the session."""
    method = next(row["algorithm"] for row in rows if row["algorithm"] != "sam")
    scores = {(r["algorithm"], r["label"], int(r["step"])): float(r["value"]) for r in rows if r["value"]}
    steps = sorted({step for _, _, step in scores})
    labels = list(dict.fromkeys(row["label"] for row in rows))
    print("| half, structure | patients | without learning | with | difference | p |\n|---|---|---|---|---|---|")
    for half, chosen in (("first", steps[: len(steps) // 2]), ("second", steps[len(steps) // 2 :])):
        for label in labels:
            there = [step for step in chosen if (method, label, step) in scores]
            pairs = [[scores[one, label, step] for step in there] for one in (method, "sam")]
            report(f"{half}, {label}", *pairs)
        means = [[np.mean([scores[one, label, s] for label in labels]) for s in chosen] for one in (method, "sam")]
        report(f"{half}, mean", *means)


def corrections_table(rows: Sequence[dict[str, str]]) -> None:
    """Print how many structures on slices are below :data:`GOOD`, of those that were found."""
    last = max(int(row["step"]) for row in rows)
    print("\n| half | structures on slices | to correct without learning | with |\n|---|---|---|---|")
    for half, of_half in (("first", lambda step: step <= last // 2), ("second", lambda step: step > last // 2)):
        chosen = [row for row in rows if of_half(int(row["step"]))]
        poor = [sum(float(row[column]) < GOOD for row in chosen) for column in ("dice_sam", "dice")]
        print(f"| {half} | {len(chosen)} | {poor[0]} | {poor[1]} |")
    of_patients = {step: [r for r in rows if int(r["step"]) == step] for step in range(last // 2 + 1, last + 1)}
    counts = [
        [sum(float(r[column]) < GOOD for r in of_one) for of_one in of_patients.values()]
        for column in ("dice", "dice_sam")
    ]
    print("\n| second half | patients | without learning | with | difference | p |\n|---|---|---|---|---|---|")
    report("to correct of a patient", *counts)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS)
    folder = parser.parse_args().folder
    dice_table(read(folder / "interaction.csv"))
    corrections_table(read(folder / "feedback.csv"))


if __name__ == "__main__":
    main()
