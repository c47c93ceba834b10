"""Score a folder of masks: ``python -m monai_ext.evaluation.score --datalist LIST --predictions DIR --output_dir OUT``.

Whoever made the masks: every case of the list is looked for as ``DIR/<case>.nii.gz`` (``.nii``, ``.png``) and
compared with its ``label``. Spacing comes from the label's header. A missing prediction counts (status
``missing``), so does a file that cannot be read (``failed``); one on another grid than its label is an error.
Values that are no label of the list count as background, and are told.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_ext.data.doctor import examine, warn_and_stop
from monai_ext.data.manifest import Case, DataList, Visit, load_datalist
from monai_ext.data.pairs import pair_with_reference
from monai_ext.data.text import read_json
from monai_ext.errors import UserError, report_user_errors
from monai_ext.evaluation.bootstrap import refuse_seed
from monai_ext.evaluation.case_metrics import refuse_tolerance
from monai_ext.evaluation.case_score import CaseScore, Options, score_case
from monai_ext.evaluation.formats import CaseDetail, CaseKey
from monai_ext.evaluation.levels import DEFAULT_LEVELS, parse_levels, refuse_empty_levels
from monai_ext.evaluation.outputs import OUTPUT_FILES, write_outputs
from monai_ext.evaluation.predictions import RESAMPLING_RULE, PredictionFiles, find_predictions
from monai_ext.evaluation.summary import format_table
from monai_ext.evaluation.table import Row
from monai_ext.files import ensure_writable_folder

SPACING_SOURCE = (
    "header of the reference mask, whose grid is that of the image, from the unit that it states (else the image's) to "
    "mm; frames have none"
)
MAX_TOLD = 5
DECIDE_LENGTHS = ("unit_not_mm", "odd_spacing", "spacing_disagrees")
"""Checks of the doctor on which every number in mm depends."""


@dataclass
class Scores:
    """The scores of a folder of masks.

    Args:
        rows: of ``metrics.csv``, in the order of the list.
        details: files and voxel counts by case and run.
        failed: sentences on predictions that could not be read.
        unexpected: values that are no label of the list, by file.
        resampled: names of the cases whose prediction was resampled.
    """

    rows: list[Row] = field(default_factory=list)
    details: dict[CaseKey, CaseDetail] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    unexpected: dict[str, tuple[int, ...]] = field(default_factory=dict)
    resampled: list[str] = field(default_factory=list)


def score(
    datalist: DataList,
    files: Mapping[str, PredictionFiles],
    options: Options,
    *,
    algorithm: str,
    run: int = 0,
    references: Mapping[str, Sequence[str]] | None = None,
    workers: int = 1,
) -> Scores:
    """Measure the cases of a data list.

    Args:
        datalist: the cases, each with a ``label``.
        files: of each case's prediction.
        options: how cases are measured.
        algorithm: column ``algorithm``.
        run: column ``run``.
        references: names for the column ``reference``, by case.
        workers: processes.

    Raises:
        UserError: where a case has no label, a reference cannot be read, or a prediction lies on another grid.
    """
    for case in datalist.cases:
        if case.label is None:
            raise UserError(
                f"case {case.case!r} has no 'label' to score against; add it to the data list, or select "
                "the cases that have one by --split or --fold"
            )
    scores = Scores()
    jobs = [(case.case, case.image, str(case.label), files[case.case], options) for case in datalist.cases]
    done = tqdm(_measured(jobs, workers), total=len(jobs), desc="scoring", unit="case", disable=None)
    for case, found in zip(datalist.cases, done, strict=True):
        served_by = "+".join((references or {}).get(case.case, ()))
        fields = _fields(case, datalist.dataset, algorithm, run, served_by)
        for label, metric, value, status in found.values:
            scores.rows.append(Row(**fields, label=label, metric=metric, value=value, status=status))
        paths = "+".join(map(str, files[case.case].paths))
        scores.details[case.case, str(run)] = CaseDetail(paths, str(case.label), found.counts)
        scores.failed += [f"case {case.case!r}: {sentence}" for sentence in found.failed]
        scores.unexpected |= found.unexpected
        scores.resampled += [case.case] * found.resampled
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    given = _parser().parse_args(arguments)
    started = datetime.datetime.now(datetime.timezone.utc)
    levels = parse_levels(given.mean_of)
    refuse_seed(given.seed)
    refuse_tolerance(given.nsd_tolerance_mm)
    given.predictions = str(Path(given.predictions).expanduser().absolute())
    datalist = load_datalist(given.datalist, given.data_root, split=given.split, fold=given.fold)
    refuse_empty_levels(levels, [{"visit": _visit(case.visit), "fold": _fold(case.fold)} for case in datalist.cases])
    references = _select_targets(datalist, given.reference_visit) if given.follow_up else {}
    files, unexpected = find_predictions(
        given.predictions, [case.case for case in datalist.cases], datalist.labels, _all_names(given.datalist)
    )
    output_dir = ensure_writable_folder(given.output_dir)
    warn_and_stop([found for found in examine(datalist, follow_up=False) if found.code in DECIDE_LENGTHS])
    scores = score(
        datalist,
        files,
        _options(datalist, given),
        algorithm=given.algorithm or _name_of(Path(given.predictions)),
        run=given.run,
        references=references,
        workers=given.workers,
    )
    folders = _folders(given)
    warnings = [_below(text, folders) for text in _warnings(scores, files, unexpected)]
    details = {
        key: CaseDetail(_below(detail.prediction_file, folders), _below(detail.reference_file, folders), detail.counts)
        for key, detail in scores.details.items()
    }
    remarks: dict[str, Any] = {"spacing_source": SPACING_SOURCE, "warnings": warnings}
    if given.resample:
        remarks["resampling"] = {"rule": RESAMPLING_RULE, "cases": scores.resampled}
    summary = write_outputs(
        scores.rows,
        output_dir,
        seed=given.seed,
        mean_of=levels,
        label_values=datalist.labels,
        details=details,
        remarks=remarks,
    )
    _record(output_dir, given, datalist, files, started)
    print(f"{format_table(scores.rows, summary)}\n\nwritten to {output_dir}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m monai_ext.evaluation.score",
        description="Score a folder of masks, DIR/<case>.nii.gz or .png, against the labels of a data list.",
    )
    add = parser.add_argument
    add("--datalist", required=True, metavar="LIST", help="JSON file of the cases")
    add("--predictions", required=True, metavar="DIR", help="folder of the masks")
    add("--output_dir", required=True, metavar="OUT", help="folder for the tables")
    add("--data_root", metavar="DIR", help="folder that paths in the list refer to (default: the list's)")
    add("--split", help="score the cases of this split")
    add("--fold", type=int, help="score the cases of this fold")
    add("--follow_up", action="store_true", help="score later visits only: each patient's first is the reference")
    add("--reference_visit", help="with --follow_up: the visit that is the reference, or several: 0,1")
    add("--labels", nargs="+", metavar="LABEL", help="structures to score (default: all of the list)")
    add("--algorithm", help="column algorithm (default: the name of DIR)")
    add("--run", type=int, default=0, help="column run, numbers repeated runs (default: 0)")
    add("--resample", action="store_true", help=f"bring masks of other grids onto the label's: {RESAMPLING_RULE}")
    add("--nsd_tolerance_mm", type=float, default=2.0, metavar="MM", help="tolerance of NSD (default: 2)")
    add("--slice_axis", choices=("R", "A", "S"), help="axis that dice_slice_mean counts slices along")
    add(
        "--mean_of",
        default=",".join(DEFAULT_LEVELS),
        metavar="LEVELS",
        help="levels of the mean, finest first, of case, visit, patient, label, fold, run: visit,patient averages "
        "a patient's visits before patients (default: case)",
    )
    add("--seed", type=int, default=0, help="of the bootstrap over patients (default: 0)")
    add("--workers", type=int, default=1, help="processes (default: 1)")
    return parser


def _options(datalist: DataList, given: argparse.Namespace) -> Options:
    names = list(dict.fromkeys(given.labels)) if given.labels else list(datalist.labels)
    for name in names:
        if name not in datalist.labels:
            raise UserError(f"--labels {name}: the data list has no such label; it has {', '.join(datalist.labels)}")
    ignored = set() if datalist.ignore is None else {datalist.ignore}
    return Options(
        labels={name: datalist.labels[name] for name in names},
        known=frozenset({0, *datalist.labels.values(), *ignored}),
        ignore=datalist.ignore,
        nsd_tolerance_mm=given.nsd_tolerance_mm,
        slice_axis=given.slice_axis,
        resample=given.resample,
    )


def _select_targets(datalist: DataList, reference_visit: str | None) -> dict[str, list[str]]:
    """Leave in the list what a follow-up method segments; return the references' names by case."""
    visits = reference_visit.split(",") if reference_visit else None
    served = {pair["case"]: pair["reference"] for pair in pair_with_reference(datalist, visits)}
    datalist.cases = [case for case in datalist.cases if case.case in served]
    return served


def _all_names(datalist: str) -> list[str]:
    """Return the names of all cases of a list that has been checked, whatever was selected of it."""
    content = read_json(Path(datalist).expanduser())
    return [case["case"] for case in content["cases"]]


def _name_of(folder: Path) -> str:
    """Name an algorithm by its folder; ``masks`` is what bundles call the folder in theirs."""
    return folder.parent.name if folder.name == "masks" and folder.parent.name else folder.name or "predictions"


# Cases


def _measured(jobs: Sequence[tuple[str, str, str, PredictionFiles, Options]], workers: int) -> Iterator[CaseScore]:
    """Yield each case's score in order, measured in this process or several."""
    if workers <= 1 or len(jobs) <= 1:
        yield from (score_case(*job) for job in jobs)
        return
    size = max(1, min(16, len(jobs) // (4 * workers)))
    pool = ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(score_case, *zip(*jobs, strict=True), chunksize=size)
    except BrokenProcessPool as error:
        raise UserError("a process was ended from outside, likely for want of memory; lower --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fields(case: Case, task: str, algorithm: str, run: int, reference: str) -> dict[str, str]:
    return {
        "task": task,
        "algorithm": algorithm,
        "case": case.case,
        "patient": case.patient or "",
        "visit": _visit(case.visit),
        "reference": reference,
        "fold": _fold(case.fold),
        "run": str(run),
    }


def _visit(visit: Visit | None) -> str:
    if visit is None:
        return ""
    if isinstance(visit, datetime.date):
        return visit.isoformat()
    return str(int(visit)) if float(visit).is_integer() else str(visit)


def _fold(fold: int | None) -> str:
    return "" if fold is None else str(fold)


# What a reader must know


def _warnings(scores: Scores, files: Mapping[str, PredictionFiles], unexpected: Sequence[str]) -> list[str]:
    missing = [case for case, found in files.items() if not found.paths]
    told = []
    if missing:
        told.append(f"{_count(missing, 'case has', 'cases have')} no prediction: {_list(missing)}")
    told += scores.failed[:MAX_TOLD]
    if len(scores.failed) > MAX_TOLD:
        told.append(f"{len(scores.failed) - MAX_TOLD} more predictions could not be read")
    if scores.unexpected:
        values = sorted({value for found in scores.unexpected.values() for value in found})
        told.append(
            f"{_count(scores.unexpected, 'file holds', 'files hold')} values that are no label of the data list "
            f"({_list(values)}), counted as background: {_list(list(scores.unexpected))}"
        )
    if unexpected:
        told.append(f"{_count(unexpected, 'mask is', 'masks are')} of no case of the data list: {_list(unexpected)}")
    if scores.resampled:
        count = _count(scores.resampled, "prediction was", "predictions were")
        told.append(f"{count} resampled onto the reference's grid: {_list(scores.resampled)}")
    return told


def _folders(given: argparse.Namespace) -> list[str]:
    """Return the folders of predictions and references, which no table shall name: they are of one machine."""
    folders = [Path(given.predictions), Path(given.data_root or Path(given.datalist).parent).expanduser().absolute()]
    forms = [form for folder in folders for form in (folder.resolve(), folder)]
    return [f"{form}/" for form in dict.fromkeys(forms)]


def _below(text: str, folders: Sequence[str]) -> str:
    """Leave the folders out of the paths that begin with them; a folder of the same name further down stays."""
    for folder in folders:
        text = re.sub(rf"(?<![^\s'\"(+]){re.escape(folder)}", "", text)
    return text


def _count(things: Any, one: str, several: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else several}"


def _list(things: Sequence[Any]) -> str:
    return ", ".join(map(str, things[:MAX_TOLD])) + (", ..." if len(things) > MAX_TOLD else "")


def _record(
    output_dir: Path,
    given: argparse.Namespace,
    datalist: DataList,
    files: Mapping[str, PredictionFiles],
    started: datetime.datetime,
) -> None:
    peak_memory = _peak_memory()
    from monai_ext.evaluation.record import write_record  # imports torch, so after the work

    inputs: list[str | Path] = [str(case.label) for case in datalist.cases]
    inputs += [path for found in files.values() for path in found.paths]
    write_record(
        output_dir,
        inputs=inputs,
        outputs=[name for name in OUTPUT_FILES if (output_dir / name).is_file()],
        config=vars(given),
        seed=given.seed,
        datalist=given.datalist,
        data_root=given.data_root,
        started=started,
        peak_memory_bytes=peak_memory,
        processes=given.workers,
    )


def _peak_memory() -> int | None:
    """Return the largest resident size of this process or one that it started, in bytes."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) * unit


if __name__ == "__main__":
    report_user_errors()
    main()
