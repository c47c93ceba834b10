"""What the self-check knows of later visits: of each structure of finished runs its self-check against its Dice.

Run by hand on the folders of finished validation runs: ``python benchmarks/self_check.py RUN RUN ...``. For each
threshold: how many structures it warns of, the share of those with a Dice below 0.7 that it finds, and the share of the
others that it leaves in peace.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from scipy import stats

from monai_ext.evaluation.review import GOOD_DICE

THRESHOLDS = [k / 20 for k in range(6, 19)]


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def pairs(run: Path) -> list[tuple[float, float]]:
    """Self-check and Dice of each case and structure of a run."""
    dice = {(r["case"], r["label"]): r["value"] for r in rows(run / "metrics.csv") if r["metric"] == "dice"}
    features = [r for r in rows(run / "review_features.csv") if r["feature"] == "self_check"]
    checked = {(r["case"], r["label"]): r["value"] for r in features}
    return [(float(value), float(dice[key])) for key, value in checked.items() if value and dice.get(key)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    known = [pair for run in parser.parse_args().runs for pair in pairs(run)]
    bad = [dice < GOOD_DICE for _, dice in known]
    correlation = stats.spearmanr(*zip(*known, strict=True)).statistic
    print(f"{len(known)} structures, {sum(bad)} with a Dice below {GOOD_DICE}; Spearman {correlation:.2f}")
    print("threshold  warned  found  left in peace")
    for threshold in THRESHOLDS:
        low = [checked < threshold for checked, _ in known]
        found = sum(a and b for a, b in zip(low, bad, strict=True)) / max(sum(bad), 1)
        peace = sum(not a and not b for a, b in zip(low, bad, strict=True)) / max(len(bad) - sum(bad), 1)
        print(f"{threshold:9.2f}  {sum(low):6d}  {found:5.2f}  {peace:13.2f}")


if __name__ == "__main__":
    main()
