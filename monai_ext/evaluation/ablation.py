"""A paper's ablations as one command: the same cases under one setting after the other, each against the default.

::

    python -m monai_ext.evaluation.ablation --bundle_root BUNDLE --datalist LIST.json \
      --configs "['inference','evaluate']" --table NAME NAME --output_dir OUT

The tables stand in the bundle's ``configs/ablations.json``. Each setting is a run of the bundle, as `python -m
monai.bundle run` does it, with options set over those of the configs, in a folder of its own, ``OUT/<algorithm>``. The
first is the default: the configs as they are. A setting that comes to the same as the default, or as another one, is
not run again, and cases that are finished are kept: a command that was killed goes on where it was.
``OUT/ablation.csv`` and ``OUT/ablation.md`` are of the tables of this call: means as in each run's ``summary.json``,
and differences to the default, paired by case, as :mod:`monai_ext.evaluation.compare` finds them.

With ``--train_configs`` the settings are of a training: each network is trained, then evaluated by ``--configs``, from
each of ``--supports`` where the method takes one. Options of all trainings are ``--train_options``. Another protocol of
the same networks takes their folder, ``--trainings``. With ``--novel A B`` each setting is trained once for each of
these structures, without it (option ``novel``), and asked for it (option ``labels``): one table of all and their mean.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from monai_ext.data.text import read_json
from monai_ext.errors import UserError, report_user_errors
from monai_ext.evaluation.bootstrap import DRAWS
from monai_ext.evaluation.bundle_runs import find_config, meaning, read_configs, refuse_unknown, run_bundle
from monai_ext.evaluation.compare import Difference, compare
from monai_ext.evaluation.pairing import MACRO
from monai_ext.evaluation.summary import summarise, write_summary
from monai_ext.evaluation.table import Row, read_rows, write_rows, write_table, write_text

DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """One row of a table.

    Attributes:
        name: of the row, and of the run's folder and algorithm after that of the configs.
        options: set over those of the configs; none: the default.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


Table = tuple[Setting, ...]
TABLES_FILE = "ablations.json"
"""In the bundle's ``configs``: table -> name of a setting -> its options, in the order of the rows."""


@dataclass(frozen=True)
class AblationRow:
    """One row of ``ablation.csv``: a setting in one metric and label, or in the mean over labels (``macro``).

    Attributes:
        table: its name.
        setting: name.
        algorithm: of the run that stands for it, its folder; several settings that come to the same share one.
        options: of the setting, as JSON.
        metric: name.
        label: name, or ``macro``.
        n: values that the mean is of.
        mean: as in the run's ``summary.json``.
        ci_low: lower end of its 95 % interval.
        ci_high: upper end.
        n_pairs: cases in which the setting and the default both have a value; none for the default.
        difference: mean of setting minus default over these.
        difference_low: lower end of its 95 % interval.
        difference_high: upper end.
        p: of the signed-rank test over patients.
        p_holm: adjusted for all comparisons of the table: its settings, labels, macro and metrics.
    """

    table: str
    setting: str
    algorithm: str
    options: str
    metric: str
    label: str
    n: int | None
    mean: float | None
    ci_low: float | None
    ci_high: float | None
    n_pairs: int | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    p_holm: float | None = None


COLUMNS = tuple(one.name for one in fields(AblationRow))


class Ablation:
    """Runs settings of a bundle.

    Args:
        bundle_root: the bundle's folder.
        configs: its config and overlays: paths, or names in ``configs`` of the bundle. One of them measures the cases.
        output_dir: folder of the runs' folders.
        options: set over those of the configs for all settings, the default, too.

    Raises:
        UserError: a config is not there, is broken, or measures nothing; or no config has such an option.

    Attributes:
        tables: of the bundle.
    """

    def __init__(
        self,
        bundle_root: str | Path,
        configs: Sequence[str],
        output_dir: str | Path,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.tables = read_tables(bundle_root)
        self.files = [str(find_config(Path(bundle_root), name)) for name in configs]
        self.options = {"bundle_root": str(bundle_root), **(options or {})}
        self._config = read_configs("--configs", self.files)
        refuse_unknown("--configs", self._config, self.options)
        handlers = self._config.get("handlers") or []
        targets = [str(one.get("_target_")) for one in handlers if isinstance(one, dict)]
        if not any(target.endswith((".CaseTable", ".case_table")) for target in targets):
            raise UserError("no config of --configs measures the cases: add evaluate to the list")
        self.algorithm = str(self.options.get("algorithm", self._config.get("algorithm")))
        self._runs: dict[str, str] = {}
        self._finished: set[Path] = set()

    def run(self, setting: Setting) -> str:
        """Run a setting, where none that comes to the same was run before, and return its algorithm's name.

        Raises:
            UserError: no config has such an option; and whatever the run refuses.
        """
        self._refuse(setting)
        self._runs.setdefault(self._meaning({}), self.algorithm)
        algorithm = self._runs.setdefault(self._meaning(setting.options), f"{self.algorithm}_{setting.name}")
        folder = self.output_dir / algorithm
        if folder in self._finished:
            return algorithm
        print(f"\n{setting.name}: {dict(setting.options) or 'the configs as they are'} -> {folder}", flush=True)
        self._carry_out(setting, algorithm, folder)
        self._finished.add(folder)
        return algorithm

    def _carry_out(self, setting: Setting, algorithm: str, folder: Path) -> None:
        """Leave a setting's ``metrics.csv`` and ``summary.json`` in its folder."""
        given = {**self.options, **setting.options, "algorithm": algorithm, "output_dir": str(folder)}
        run_bundle(self.files, "infer", given)

    def table(self, name: str, metrics: Sequence[str] = ("dice",), draws: int = DRAWS) -> list[AblationRow]:
        """Run the default and all settings of a table, and compare.

        Args:
            name: in the bundle's ``ablations.json``.
            metrics: to compare.
            draws: of the bootstrap of the differences.

        Returns:
            For each metric and setting, the default first, one row a label, then ``macro`` where there are several.

        Raises:
            UserError: there is no such table or metric; see :meth:`run` and
                :func:`monai_ext.evaluation.compare.compare`.
        """
        settings = [Setting(DEFAULT), *find_table(self.tables, name)]
        known = _read_summary(self.output_dir / self.run(settings[0]))["macro"]
        for metric in metrics:
            if metric not in known:
                raise UserError(f"the runs have no metric {metric!r}: choose --metric from {', '.join(known)}")
        algorithms = [self.run(setting) for setting in settings]
        others = [one for one in dict.fromkeys(algorithms) if one != self.algorithm]
        tables = [self.output_dir / one / "metrics.csv" for one in (self.algorithm, *others)]
        differences = compare(tables, metrics, draws) if others else []
        found = {(row.metric, row.label, row.second): row for row in differences}
        summaries = {one: _read_summary(self.output_dir / one) for one in set(algorithms)}
        return [
            _row(name, setting, algorithm, metric, label, summaries[algorithm], found.get((metric, label, algorithm)))
            for metric in dict.fromkeys(metrics)
            for setting, algorithm in zip(settings, algorithms, strict=True)
            for label in _labels(summaries[algorithm])
        ]

    def _refuse(self, setting: Setting) -> None:
        refuse_unknown("--configs", self._config, setting.options)

    def _meaning(self, options: Mapping[str, Any]) -> str:
        """Return the configuration that decides a run, as text: settings that come to the same have the same."""
        return meaning(self._config, {**self.options, **options})


class TrainedAblation(Ablation):
    """Trains a network for each setting, and evaluates it from each of several supports.

    The settings' options are those of the training; ``OUT/trainings/<setting>`` holds what it leaves, and a training
    that is finished is not done again. ``OUT/<algorithm>/<support>`` are the evaluations, whose rows are joined in
    ``OUT/<algorithm>/metrics.csv``: column ``run`` names the support. Methods are paired by case and support. Each of
    the novel structures has a folder of its own within those of the training and of the evaluations.

    Args:
        bundle_root: see :class:`Ablation`.
        train_configs: of the training, as ``configs`` are of the evaluation.
        configs: see :class:`Ablation`.
        output_dir: see :class:`Ablation`.
        supports: values of the option ``support``; none: the configs' own, once.
        train_options: set over those of ``train_configs`` for all settings.
        options: see :class:`Ablation`.
        trainings: folder of the trainings, which another protocol may share; None: ``OUT/trainings``.
        novel: structures, each the ``novel`` one of a training of its own and the ``labels`` of its evaluation; none:
            as the options say, once.

    Raises:
        UserError: see :class:`Ablation`.
    """

    def __init__(
        self,
        bundle_root: str | Path,
        train_configs: Sequence[str],
        configs: Sequence[str],
        output_dir: str | Path,
        supports: Sequence[str] = (),
        train_options: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        trainings: str | Path | None = None,
        novel: Sequence[str] = (),
    ) -> None:
        super().__init__(bundle_root, configs, output_dir, options)
        if supports:
            refuse_unknown("--configs", self._config, {"support": None})
        self.supports = list(dict.fromkeys(supports))
        self.train_files = [str(find_config(Path(bundle_root), name)) for name in train_configs]
        self.train_options = {"bundle_root": str(bundle_root), **(train_options or {})}
        self.trainings = self.output_dir / "trainings" if trainings is None else Path(trainings)
        self._training = read_configs("--train_configs", self.train_files)
        refuse_unknown("--train_configs", self._training, self.train_options)
        self.novel = list(dict.fromkeys(novel))
        if self.novel:
            refuse_unknown("--train_configs", self._training, {"novel": None})
            refuse_unknown("--configs", self._config, {"labels": None})

    def _refuse(self, setting: Setting) -> None:
        refuse_unknown("--train_configs", self._training, setting.options)

    def _meaning(self, options: Mapping[str, Any]) -> str:
        return meaning(self._training, {**self.train_options, **options})

    def _carry_out(self, setting: Setting, algorithm: str, folder: Path) -> None:
        trained = self.trainings / (algorithm[len(self.algorithm) + 1 :] or DEFAULT)
        rows: list[Row] = []
        novel: Sequence[str | None] = self.novel or [None]
        supports: Sequence[str | None] = self.supports or [None]
        for name in novel:
            part = "" if name is None else re.sub(r"\W+", "-", name)
            train = {**self.train_options, **setting.options, "output_dir": str(trained / part)}
            evaluate = {**self.options, "checkpoint": str(trained / part / "model.pt"), "algorithm": algorithm}
            if name is not None:
                train, evaluate = {**train, "novel": name}, {**evaluate, "labels": [name]}
            run_bundle(self.train_files, "train", train)
            for support in supports:
                own = folder / part / ("" if support is None else re.sub(r"\W+", "-", support))
                served = {} if support is None else {"support": support}
                run_bundle(self.files, "infer", {**evaluate, **served, "output_dir": str(own)})
                found = read_rows(own / "metrics.csv")
                rows += found if support is None else [replace(row, run=support) for row in found]
        if own != folder:
            write_rows(folder / "metrics.csv", rows)
            write_summary(folder / "summary.json", summarise(rows, mean_of=_read_summary(own)["mean_of_levels"]))


def read_tables(bundle_root: str | Path) -> dict[str, Table]:
    """Read the tables of a bundle.

    Raises:
        UserError: it has none.
    """
    path = Path(bundle_root) / "configs" / TABLES_FILE
    try:
        content = read_json(path)
        return {
            table: tuple(Setting(name, dict(options)) for name, options in settings.items())
            for table, settings in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not there or holds no tables ({error}); is --bundle_root right?") from error


def find_table(tables: Mapping[str, Table], name: str) -> Table:
    """Return a table's settings.

    Raises:
        UserError: there is none of that name.
    """
    if name not in tables:
        raise UserError(f"there is no table {name!r}: choose from {', '.join(tables)}")
    return tables[name]


def ablation_text(rows: Sequence[AblationRow]) -> str:
    """Lay out the rows as Markdown: for each table and metric the means, then the differences to the default."""
    blocks = []
    for table, metric in dict.fromkeys((row.table, row.metric) for row in rows):
        of_table = [row for row in rows if (row.table, row.metric) == (table, metric)]
        labels = list(dict.fromkeys(row.label for row in of_table))
        settings = list(dict.fromkeys(row.setting for row in of_table))
        cell = {(row.setting, row.label): row for row in of_table}
        digits = 1 if metric.startswith(("hd", "assd", "masd")) else 3
        means, differences = [["setting", "run", *labels]], [["setting minus default", *labels]]
        for setting in settings:
            own = [cell.get((setting, label)) for label in labels]
            algorithm = next(row.algorithm for row in own if row)
            means.append([setting, algorithm, *(_mean_cell(row, digits) for row in own)])
            if any(row.difference is not None for row in own if row):
                differences.append([setting, *(_difference_cell(row, digits) for row in own)])
        blocks.append(f"## {table}, {metric}\n\n{_markdown(means)}")
        if len(differences) > 1:
            blocks.append(_markdown(differences))
    notes = (
        "Means [95 % CI, bootstrap over patients] as in each run's `summary.json`. Differences are setting minus "
        "default, mean over the cases in which both have a value [95 % CI], then p of Wilcoxon's signed-rank test "
        "over patients after Holm's correction over the table; - where there is no test. Settings with the same run "
        "come to the same; those without a difference are the default."
    )
    return "\n\n".join(["# Ablations", *blocks, notes]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_ext.evaluation.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle_root", required=True, help="the bundle's folder")
    parser.add_argument("--datalist", help="JSON data list (default: that of the configs)")
    parser.add_argument(
        "--configs",
        default="['inference','evaluate']",
        help="list of names in the bundle's configs, or paths (default: %(default)s)",
    )
    parser.add_argument("--table", nargs="+", required=True, help=f"one or more of the bundle's {TABLES_FILE}")
    parser.add_argument("--output_dir", required=True, help="folder for the runs, ablation.csv and ablation.md")
    parser.add_argument("--options", default="{}", help="for all settings, \"{'threads': 1, 'split': 'test'}\"")
    parser.add_argument("--metric", nargs="+", default=["dice"], help="names in metrics.csv (default: dice)")
    parser.add_argument("--train_configs", help="the settings are of a training: list of its configs")
    parser.add_argument("--train_options", default="{}", help="for all trainings")
    parser.add_argument("--trainings", help="folder of the trainings (default: OUT/trainings)")
    parser.add_argument("--supports", nargs="+", default=[], help="annotated cases that serve one after the other")
    parser.add_argument("--novel", nargs="+", default=[], help="structures, each left out of a training and asked for")
    given = parser.parse_args(arguments)
    tables = read_tables(given.bundle_root)
    for name in given.table:
        find_table(tables, name)
    options = _literal("--options", given.options, dict)
    for name in ("algorithm", "output_dir"):
        if name in options:
            raise UserError(f"--options must not hold {name!r}: each setting has its own")
    if given.datalist is not None:
        options["datalist"] = given.datalist
    ablation = _ablation(given, options)
    rows = [row for name in dict.fromkeys(given.table) for row in ablation.table(name, given.metric)]
    text = ablation_text(rows)
    write_table(ablation.output_dir / "ablation.csv", COLUMNS, map(astuple, rows))
    write_text(ablation.output_dir / "ablation.md", text)
    print(f"\n{text}\nwritten to {ablation.output_dir}: ablation.csv, ablation.md")


def _ablation(given: argparse.Namespace, options: dict[str, Any]) -> Ablation:
    configs = [str(name) for name in _literal("--configs", given.configs, list)]
    if given.train_configs is None:
        if given.supports or given.novel or given.trainings or given.train_options != "{}":
            raise UserError(
                "--supports, --novel, --trainings and --train_options go with --train_configs: give it, too"
            )
        return Ablation(given.bundle_root, configs, given.output_dir, options)
    train_options = _literal("--train_options", given.train_options, dict)
    if "output_dir" in train_options:
        raise UserError("--train_options must not hold 'output_dir': each setting has its own")
    if given.datalist is not None:
        train_options["datalist"] = given.datalist
    return TrainedAblation(
        given.bundle_root,
        [str(name) for name in _literal("--train_configs", given.train_configs, list)],
        configs,
        given.output_dir,
        given.supports,
        train_options,
        options,
        given.trainings,
        given.novel,
    )


def _literal(option: str, text: str, kind: type) -> Any:
    """Read a list or dictionary as MONAI's command line has it; one name alone is a list of one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = [text] if kind is list and text.isprintable() and not text.lstrip().startswith(("[", "{")) else None
    if not isinstance(value, kind):
        example = "\"['inference','evaluate']\"" if kind is list else "\"{'threads': 1}\""
        raise UserError(f"{option} {text} is no {'list' if kind is list else 'dictionary'}: write it as {example}")
    return value


def _read_summary(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / "summary.json"))


def _labels(summary: Mapping[str, Any]) -> list[str]:
    return [*summary["labels"], *([MACRO] if len(summary["labels"]) > 1 else [])]


def _row(
    table: str,
    setting: Setting,
    algorithm: str,
    metric: str,
    label: str,
    summary: Mapping[str, Any],
    difference: Difference | None,
) -> AblationRow:
    of_label = summary["macro"] if label == MACRO else summary["labels"][label]
    found = of_label[metric]
    row = AblationRow(
        table=table,
        setting=setting.name,
        algorithm=algorithm,
        options=json.dumps(dict(setting.options)),
        metric=metric,
        label=label,
        n=found.get("n_defined"),
        mean=found["mean"],
        ci_low=found["ci_low"],
        ci_high=found["ci_high"],
    )
    if difference is None or difference.difference is None:
        return row
    return replace(
        row,
        n_pairs=difference.n_pairs,
        difference=0.0 - difference.difference,
        difference_low=None if difference.ci_high is None else 0.0 - difference.ci_high,
        difference_high=None if difference.ci_low is None else 0.0 - difference.ci_low,
        p=difference.p,
        p_holm=difference.p_holm,
    )


def _mean_cell(row: AblationRow | None, digits: int) -> str:
    if row is None or row.mean is None:
        return "-"
    return f"{row.mean:.{digits}f} [{row.ci_low:.{digits}f}, {row.ci_high:.{digits}f}]"


def _difference_cell(row: AblationRow | None, digits: int) -> str:
    if row is None or row.difference is None:
        return "-"
    p = "-" if row.p_holm is None else f"{row.p_holm:.2g}"
    ends = f"[{row.difference_low:+.{digits}f}, {row.difference_high:+.{digits}f}]"
    return f"{row.difference:+.{digits}f} {ends}, {p}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    header, *rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([header, "|" + "---|" * len(lines[0]), *rows])


if __name__ == "__main__":
    report_user_errors()
    main()
