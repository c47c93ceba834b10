"""Merge shards: `python -m monai_ext.evaluation.merge OUT/shard-* --output_dir OUT`.

Every shard (`--shard 0/4` to `--shard 3/4` of one and the same command) has left ``shard.json``, which tells what the
whole is, and a record of each of its cases. From these the tables of the whole are written, the same bytes as those
of a run that was not divided; masks, overlays and records are copied; ``run.json`` tells what each shard ran on.
Nothing is written before everything has been checked.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_ext.configuration import first_difference
from monai_ext.data.shards import Shard, parse_shard
from monai_ext.data.text import read_json
from monai_ext.errors import UserError, report_user_errors
from monai_ext.evaluation.case_record import (
    FOLDER,
    METRICS,
    SHARD_FILE,
    CaseRecord,
    read_case_record,
    record_path,
    table_rows,
    write_metrics,
)
from monai_ext.evaluation.record import output_files, read_shard_records, write_merged_record
from monai_ext.evaluation.review import REVIEW, worst_first
from monai_ext.evaluation.summary import format_table
from monai_ext.evaluation.table import write_table
from monai_ext.files import atomic_path, ensure_writable_folder


@dataclass(frozen=True)
class ShardRun:
    """A finished run of one shard, as its ``shard.json`` tells.

    Args:
        folder: its outputs.
        shard: which part it is.
        cases: key of each of its cases.
        whole: what must be the same in all shards: the list of all cases, settings, options of the summary.
    """

    folder: Path
    shard: Shard
    cases: dict[str, str]
    whole: dict[str, Any]


def merge(shard_dirs: Sequence[str | Path], output_dir: str | Path) -> None:
    """Write the outputs of the whole evaluation or inference.

    Args:
        shard_dirs: output folders of all shards, or folders that hold them as ``shard-<i>-of-<n>``.
        output_dir: folder for the merged outputs.

    Raises:
        UserError: where a shard is missing, twice there, not finished, altered, or not of the same evaluation.
    """
    started = datetime.now(timezone.utc)
    runs = [read_shard(folder) for folder in find_shards(shard_dirs)]
    refuse_other_runs(runs)
    refuse_incomplete(runs)
    place = {case: run for run in runs for case in run.cases}
    order = runs[0].whole["list"]
    records = [read_finished(place[case], case) for case in tqdm(order, desc="checking cases", unit="case", delay=2)]
    read_shard_records([run.folder for run in runs])
    target = ensure_writable_folder(output_dir)
    for record in records:
        _copy_case(record, place[record.case].folder, target)
    written = write_tables(records, target, runs[0].whole["summary"])
    copied = [target / file for record in records for file in (*record.files, f"{FOLDER}/{record.case}.json")]
    known = {path.relative_to(target) for path in (*copied, *written)}
    write_merged_record(target, [run.folder for run in runs], sorted(known), started=started)


def find_shards(folders: Iterable[str | Path]) -> list[Path]:
    """Return the folders of shards: those given, and those that lie in the ones given.

    Raises:
        UserError: where a folder is none and holds none.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        files = [folder / SHARD_FILE] if (folder / SHARD_FILE).is_file() else folder.glob(f"shard-*-of-*/{SHARD_FILE}")
        inside = sorted(file.parent for file in files)
        if not inside:
            raise UserError(
                f"{folder} is no finished shard and holds none ({SHARD_FILE} is missing); start its run again with the "
                "same options, it goes on where it was"
            )
        found += inside
    return found


def read_shard(folder: Path) -> ShardRun:
    """Read the ``shard.json`` of a folder.

    Raises:
        UserError: it is not usable.
    """
    path = folder / SHARD_FILE
    try:
        content = read_json(path)
        shard = parse_shard(content["shard"])
        whole = {key: content[key] for key in ("list", "settings", "summary")}
        if shard is None or not isinstance(content["cases"], dict) or not isinstance(whole["list"], list):
            raise ValueError("it does not name a shard and its cases")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the file of a shard ({error}); start the run of this shard again") from error
    return ShardRun(folder, shard, content["cases"], whole)


def refuse_other_runs(runs: Sequence[ShardRun]) -> None:
    """Refuse shards that are not parts of one evaluation.

    Raises:
        UserError: names two shards and the first thing in which they differ.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.shard.count != first.shard.count:
            found: Any = ("number of shards", first.shard.count, run.shard.count)
        else:
            found = first_difference(first.whole["list"], run.whole["list"], "list of cases")
            found = found or first_difference(first.whole["settings"], run.whole["settings"])
            found = found or first_difference(first.whole["summary"], run.whole["summary"])
        if found:
            what, one, other = found
            raise UserError(
                f"{first.folder} and {run.folder} are not parts of one evaluation: {what.removeprefix('config#')} is "
                f"{_short(one)} in one and {_short(other)} in the other; run all shards with the same options"
            )


def refuse_incomplete(runs: Sequence[ShardRun]) -> None:
    """Refuse a shard that is missing or twice there, and lists of cases that do not make up the whole.

    Raises:
        UserError: names the shard.
    """
    taken: dict[int, ShardRun] = {}
    for run in runs:
        if run.shard.index in taken:
            other = taken[run.shard.index].folder
            raise UserError(f"{other} and {run.folder} are both shard {run.shard}; name each shard once")
        taken[run.shard.index] = run
    count = runs[0].shard.count
    missing = [f"{index}/{count}" for index in range(count) if index not in taken]
    if missing:
        raise UserError(f"shard {', '.join(missing)} is missing; run it, or name its folder, too")
    if sorted(case for run in runs for case in run.cases) != sorted(runs[0].whole["list"]):
        raise UserError(f"the cases of the {count} shards do not make up the whole list; run all shards again")


def read_finished(run: ShardRun, case: str) -> CaseRecord:
    """Return the record of a case.

    Raises:
        UserError: the record is not that of this run, or a file that was written for the case is not as it was.
    """
    record = read_case_record(run.folder, case)
    problem = "its record is missing or of another run" if record is None or record.key != run.cases[case] else None
    if record is not None and problem is None:
        changed = record.find_change(run.folder)
        if changed is None:
            return record
        problem = f"{changed} is missing or altered"
    raise UserError(
        f"{run.folder}: case {case!r} of shard {run.shard} is not as it was when the shard ended ({problem}); start "
        "the run of this shard again with the same options"
    )


def write_tables(records: Sequence[CaseRecord], output_dir: Path, options: dict[str, Any]) -> list[Path]:
    """Write every table of the records' cases, print the metrics, and return what was written."""
    before = {path: path.stat().st_mtime_ns for path in output_files(output_dir)}
    tables = {name: table.columns for record in records for name, table in record.tables.items()}
    for name, columns in tables.items():
        if name.endswith(".csv") and name != METRICS:
            rows = list(table_rows(records, name))
            write_table(output_dir / name, columns, worst_first(rows) if name == REVIEW else rows)
    written = write_metrics(records, output_dir, options)
    if written is not None:
        print(f"{format_table(*written)}\n\nwritten to {output_dir}", flush=True)
    return [path for path in output_files(output_dir) if before.get(path) != path.stat().st_mtime_ns]


def _copy_case(record: CaseRecord, source: Path, target: Path) -> None:
    """Bring a case's files and, last, its record to the merged folder."""
    if source.resolve() == target.resolve():
        return
    for name in record.files:
        _copy(source / name, target / name)
    _copy(record_path(source, record.case), record_path(target, record.case))


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    report_user_errors()
    parser = argparse.ArgumentParser(prog="python -m monai_ext.evaluation.merge", description="Merge shards.")
    parser.add_argument("shards", nargs="+", help="output folders of all shards, or the folder that holds them")
    parser.add_argument("--output_dir", required=True, help="folder for the merged outputs")
    options = parser.parse_args(arguments)
    merge(options.shards, options.output_dir)


if __name__ == "__main__":
    main()
