"""Simulated scribbles beside drawn ones: ``python benchmarks/scribbles.py [LIST.json [cases]]``.

Without a list, ACDC.json in the folder that MONAI_EXT_DATA names is taken. The list must name a ``label`` and a
``scribble`` for each case, as ACDC's does. For every structure, and for the background, the table gives the mean (and
standard deviation) over slices of the numbers of :class:`monai_ext.metrics.scribbles.ScribbleStatistics`.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from monai_ext.data.images import read_geometry, read_label
from monai_ext.data.manifest import load_datalist
from monai_ext.metrics.scribbles import ScribbleStatistics, scribble_statistics
from monai_ext.transforms.scribbles import KINDS, simulate_scribble


def main(path: str, most: int = 1000) -> None:
    """Print the table."""
    datalist = load_datalist(path)
    if datalist.ignore is None:
        sys.exit(f"{path}: no 'ignore' value, which is what scribbles leave unlabelled")
    cases = [case for case in datalist.cases if case.label and case.scribble][:most]
    found: dict[tuple[str, str], list[ScribbleStatistics]] = defaultdict(list)
    rng = np.random.default_rng(0)
    names = {"background": 0} | datalist.labels
    for case in cases:
        label, drawn = read_label(case.label), read_label(case.scribble)
        spacing = read_geometry(case.image).spacing or (1.0, 1.0)
        for k in range(label.shape[2]):
            plane = label[..., k]
            if not plane.any():
                continue
            scribbles = {"drawn": drawn[..., k]}
            for kind in KINDS:
                scribbles[kind] = simulate_scribble(plane, list(datalist.labels.values()), datalist.ignore, rng, kind)
            for who, scribble in scribbles.items():
                for name, value in names.items():
                    numbers = scribble_statistics(scribble == value, plane == value, spacing[:2])
                    if numbers:
                        found[name, who].append(numbers)
    print(f"{len(cases)} cases; mean (standard deviation) over slices")
    print(f"{'structure':<12}{'scribble':<10}{'slices':>7}" + "".join(f"{f:>18}" for f in ScribbleStatistics._fields))
    for (name, who), numbers in found.items():
        table = np.array(numbers)
        cells = [f"{m:.2f} ({s:.2f})" for m, s in zip(table.mean(axis=0), table.std(axis=0), strict=True)]
        print(f"{name:<12}{who:<10}{len(table):>7}" + "".join(f"{c:>18}" for c in cells))


if __name__ == "__main__":
    folder = os.environ.get("MONAI_EXT_DATA")
    if len(sys.argv) > 1:
        main(sys.argv[1], *map(int, sys.argv[2:3]))
    elif folder:
        main(str(Path(folder) / "ACDC.json"))
    else:
        print("no scribbles to compare with: name a data list, or set MONAI_EXT_DATA")
