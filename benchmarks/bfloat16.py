"""What the encoder in bfloat16 changes on real cases: P²SAM with the weights that are shipped, on a data list.

Run by hand: ``python benchmarks/bfloat16.py ACDC.json`` (by default that of MONAI_EXT_DATA); the bundle runs twice, in
float32 and in bfloat16. Mean Dice may change by 0.002; the same candidate should win on 99 % of slices and structures.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from monai_ext.networks.precision import has_bfloat16

BUNDLE = Path(__file__).parents[1] / "bundles" / "p2sam"
MOST_CHANGE, LEAST_SAME = 0.002, 0.99


def run(datalist: str, precision: str, output: Path) -> None:
    configs = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("inference", "evaluate", "acdc")]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs), "--bundle_root", str(BUNDLE)]
    command += ["--datalist", datalist, "--precision", precision, "--output_dir", str(output), "--threads", "1"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr.splitlines()[-1])


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def dice(output: Path) -> dict[tuple[str, str], float]:
    """(case, label) -> Dice."""
    return {(r["case"], r["label"]): float(r["value"]) for r in rows(output / "metrics.csv") if r["metric"] == "dice"}


def candidates(output: Path) -> dict[tuple[str, str, str], tuple[tuple[str, str], str]]:
    """(case, label, slice) -> the counts that won, and their points."""
    return {
        (r["case"], r["label"], r["slice"]): ((r["n_pos"], r["n_neg"]), r["points"])
        for r in rows(output / "prompts.csv")
        if r["status"] == "ok"
    }


def compare(exact: Path, rounded: Path) -> bool:
    """Print what differs between two runs; whether it is as little as asked for."""
    before, after = dice(exact), dice(rounded)
    changes = {}
    for label in sorted({label for _, label in before}):
        keys = [key for key in before if key[1] == label]
        changes[label] = sum(after[key] - before[key] for key in keys) / len(keys)
    mean, change = sum(before.values()) / len(before), sum(changes.values()) / len(changes)
    each = ", ".join(f"{label} {value:+.4f}" for label, value in changes.items())
    print(f"mean Dice {mean:.4f} in float32, {change:+.4f} in bfloat16 ({each}); at most {MOST_CHANGE}")
    one, other = candidates(exact), candidates(rounded)
    same = [key for key in one if key in other and one[key][0] == other[key][0]]
    moved = sum(one[key][1] != other[key][1] for key in same)
    share = len(same) / len(one)
    print(f"same candidate on {share:.1%} of {len(one)} slices and structures; at least {LEAST_SAME:.0%}")
    print(f"a point of it lies elsewhere on {moved} of the {len(same)}")
    return abs(change) <= MOST_CHANGE and share >= LEAST_SAME


def main() -> int:
    """Print the changes; 1 if they are larger than asked for."""
    folder = os.environ.get("MONAI_EXT_DATA")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datalist", nargs="?", default=folder and str(Path(folder) / "ACDC.json"))
    datalist = parser.parse_args().datalist
    if datalist is None:
        print("needs a data list, or MONAI_EXT_DATA")
        return 0
    if not has_bfloat16():
        print("this processor has no bfloat16 arithmetic: nothing to compare")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        outputs = {precision: Path(temporary) / precision for precision in ("float32", "bfloat16")}
        for precision, output in outputs.items():
            run(datalist, precision, output)
        return int(not compare(outputs["float32"], outputs["bfloat16"]))


if __name__ == "__main__":
    sys.exit(main())
