"""What the follow-up session learned: P²SAM's masks as they are, and after AuxOL had learned from the patients before.

``python benchmarks/auxol_session.py [FOLDER ...]``, of runs with ``session.yaml`` over the same patients in different
orders (``--order``); without one that of the bundle's documents. A run holds both: ``interaction.csv`` has the Dice of
each case (3-D) with and without learning, and ``feedback.csv`` that of each structure on each slice, which is corrected
where it is below 0.85. A patient's numbers are first averaged over those runs in which it stands in the half.
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


Table = Sequence[dict[str, str]]
HALVES = ("first", "second")


def of_half(rows: Table, half: str) -> list[dict[str, str]]:
    """Return the rows of one half of a session, by the steps of its volumes."""
    steps = sorted({int(row["step"]) for row in rows})
    chosen = steps[: len(steps) // 2] if half == "first" else steps[len(steps) // 2 :]
    return [row for row in rows if int(row["step"]) in chosen]


def of_patients(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the mean of each patient's values."""
    found: dict[str, list[float]] = {}
    for patient, value in values:
        found.setdefault(patient, []).append(value)
    return {patient: float(np.mean(those)) for patient, those in sorted(found.items())}


def dice_table(sessions: Sequence[Table]) -> None:
    """Print the Dice of the volumes in both halves of the sessions."""
    labels = list(dict.fromkeys(row["label"] for row in sessions[0]))
    print("| half, structure | patients | without learning | with | difference | p |\n|---|---|---|---|---|---|")
    for half in HALVES:
        rows = [row for session in sessions for row in of_half(session, half) if row["value"]]
        parts = {label: [row for row in rows if row["label"] == label] for label in labels}
        for name, chosen in (*parts.items(), ("mean", rows)):
            without, learned = (
                of_patients((r["patient"], float(r["value"])) for r in chosen if (r["algorithm"] == "sam") == alone)
                for alone in (True, False)
            )
            report(f"{half}, {name}", learned.values(), without.values())


def poor(session: Table, half: str, column: str) -> dict[str, int]:
    """Return each patient's number of structures on slices that are below :data:`GOOD`."""
    rows = of_half(session, half)
    counts = {row["patient"]: 0 for row in rows}
    for row in rows:
        counts[row["patient"]] += float(row[column]) < GOOD
    return counts


def corrections_table(sessions: Sequence[Table]) -> None:
    """Print how many structures on slices are below :data:`GOOD`, of those that were found."""
    print("\n| half | structures on slices | to correct without learning | with |\n|---|---|---|---|")
    for half in HALVES:
        total = sum(len(of_half(session, half)) for session in sessions)
        counts = [sum(sum(poor(one, half, column).values()) for one in sessions) for column in ("dice_sam", "dice")]
        print(f"| {half} | {total} | {counts[0]} | {counts[1]} |")
    print("\n| second half | patients | without learning | with | difference | p |\n|---|---|---|---|---|---|")
    learned, without = (
        of_patients((patient, float(n)) for one in sessions for patient, n in poor(one, "second", column).items())
        for column in ("dice", "dice_sam")
    )
    report("to correct of a patient", learned.values(), without.values())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[RESULTS])
    folders = parser.parse_args().folders
    dice_table([read(folder / "interaction.csv") for folder in folders])
    corrections_table([read(folder / "feedback.csv") for folder in folders])


if __name__ == "__main__":
    main()
