"""What was found, for people and for machines."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from monai_ext.data.doctor.dicom import FolderFacts
from monai_ext.data.doctor.facts import ListFacts
from monai_ext.data.doctor.findings import LEVELS, Check, Finding, many, stops
from monai_ext.errors import UserError

SHOWN = {"error": 20, "warning": 10, "note": 3}
"""Findings of one check on the terminal; the others are counted there, and listed by --all and --json."""

WIDTH = 116
_HEADINGS = {"error": "errors, which stop a run", "warning": "warnings, likely mistakes", "note": "notes"}


def list_summary(facts: ListFacts) -> dict[str, Any]:
    """Count cases, patients and files, and in how many label maps each structure stands."""
    cases = facts.datalist.cases
    read = [use.file.values for use in facts.labels() if use.key != "scribble" and use.file.values is not None]
    return {
        "dataset": facts.datalist.dataset,
        "cases": len(cases),
        "patients": len(facts.patients()),
        "labels": sum(case.label is not None for case in cases),
        "scribbles": sum(case.scribble is not None for case in cases),
        "files": len(list(facts.files())),
        "label_maps_read": len(read),
        "structures": {
            name: sum(value in (values.counts or {}) for values in read)
            for name, value in facts.datalist.labels.items()
        },
    }


def folder_summary(facts: FolderFacts) -> dict[str, Any]:
    """Count series, their files, and what was passed over."""
    return {
        "folder": str(facts.folder),
        "patients": len({series.patient_id for series in facts.series}),
        "image_series": len(facts.images),
        "other_series": len(facts.series) - len(facts.images),
        "dicom_files": sum(len(series.slices) for series in facts.series),
        "skipped": len(facts.skipped),
    }


def to_text(summary: dict[str, Any], findings: Sequence[Finding], seconds: float, show_all: bool = False) -> str:
    """Lay out what was found as a table by level and check, with the summary first and the verdict last."""
    lines = _summary_lines(summary, seconds)
    for level in LEVELS:
        found = [finding for finding in findings if finding.level == level]
        if found:
            lines += ["", f"{_HEADINGS[level]}:"]
        for code, group in groupby(found, key=lambda finding: finding.code):
            lines += _group_lines(code, list(group), len(found) if show_all else SHOWN[level])
    return "\n".join([*lines, "", verdict(findings)])


def to_json(summary: dict[str, Any], findings: Sequence[Finding], seconds: float) -> str:
    """Write everything as JSON."""
    listed = [vars(finding) for finding in findings]
    content = {"ok": not stops(findings), "summary": {**summary, "seconds": round(seconds, 2)}, "findings": listed}
    return json.dumps(content, indent=1, ensure_ascii=False)


def verdict(findings: Sequence[Finding]) -> str:
    """Say in one line whether something stops a run."""
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    counted = ", ".join(many(counts[level], level) for level in LEVELS)
    return f"{'something stops' if counts['error'] else 'nothing stops'} a run: {counted}"


def warn_and_stop(findings: Sequence[Finding]) -> None:
    """Print warnings on stderr, one line a check, and stop at the first error: for the beginning of a run.

    Raises:
        UserError: the first error, with case and file.
    """
    for finding in findings:
        if finding.level == "error":
            raise UserError(_with_file(finding))
    warnings = [finding for finding in findings if finding.level == "warning"]
    for _, group in groupby(warnings, key=lambda finding: finding.code):
        first, *others = group
        more = f" (and {len(others)} more: python -m monai_ext.data.doctor lists them)" if others else ""
        print(f"warning: {_with_file(first)}{more}", file=sys.stderr)


def _with_file(finding: Finding) -> str:
    return f"{finding.file}: {finding}" if finding.file else str(finding)


def describe(checks: Sequence[Check[Any]]) -> str:
    """List the checks with what they look for."""
    blocks = []
    for check in checks:
        number = f", {check.number}" if check.number is not None else ""
        body = textwrap.fill(" ".join(check.doc.split()), WIDTH, initial_indent="    ", subsequent_indent="    ")
        blocks.append(f"{check.code} ({check.level}{number})\n{body}")
    return "\n".join(blocks)


def _summary_lines(summary: dict[str, Any], seconds: float) -> list[str]:
    if "folder" in summary:
        return [
            f"{summary['folder']}: {many(summary['patients'], 'patient')}, {summary['image_series']} image and "
            f"{summary['other_series']} other series of {many(summary['dicom_files'], 'DICOM file')}, "
            f"{many(summary['skipped'], 'file')} passed over, in {seconds:.1f} s"
        ]
    lines = [
        f"{summary['dataset'] or 'data list'}: {many(summary['cases'], 'case')}, "
        f"{many(summary['patients'], 'patient')}, "
        f"{many(summary['labels'], 'label map')}, {many(summary['scribbles'], 'scribble')}; "
        f"{many(summary['files'], 'file')} in {seconds:.1f} s"
    ]
    if summary["label_maps_read"]:
        held = ", ".join(f"{name} in {number}" for name, number in summary["structures"].items())
        lines.append(f"of {many(summary['label_maps_read'], 'label map')}: {held}")
    return lines


def _group_lines(code: str, findings: Sequence[Finding], most: int) -> list[str]:
    number = f" ({findings[0].number})" if findings[0].number is not None else ""
    lines = [f"  {code}{number}"]
    fixes = {finding.fix for finding in findings}
    for finding in findings[:most]:
        case = f"case {finding.case}: " if finding.case else ""
        fix = f"; {finding.fix}" if len(fixes) > 1 else ""
        lines += _wrap(f"{case}{finding.sentence}{fix}", "    - ", "      ")
    if len(findings) > most:
        lines.append(f"    and {len(findings) - most} more (--all lists them)")
    if len(fixes) == 1:
        lines += _wrap(findings[0].fix, "    > ", "      ")
    return lines


def _wrap(text: str, first: str, further: str) -> list[str]:
    text = " ".join(text.splitlines())  # a name may hold a line break
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )
