"""The verbs that run a bundle: ``follow-up`` from a folder or two images, the others from a data list."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_ext.cli.allow_list import refuse_foreign
from monai_ext.cli.arguments import Parser, set_apart
from monai_ext.cli.bundles import bundle_options, config_files, find_bundle
from monai_ext.cli.steps import Step, bundle_step, run_bundle, say

PAGE = "report.html"


@dataclass(frozen=True)
class BundleVerb:
    """A verb that runs one config of a bundle.

    Args:
        bundle: name of its folder.
        config: that runs.
        summary: what it does, in one line.
        examples: two command lines.
    """

    bundle: str
    config: str
    summary: str
    examples: tuple[str, str]

    def main(self, name: str, arguments: Sequence[str]) -> None:
        """Run the verb.

        Raises:
            UserError: a mistake of the user.
        """
        parser = self._parser(name)
        own, further = set_apart(arguments, parser._option_string_actions)
        given, spare = parser.parse_known_args(own)
        bundle = find_bundle(self.bundle, given.bundle)
        files = config_files(bundle, [self.config, *given.overlays])
        refuse_foreign(files, given.trust)
        further = bundle_options([*spare, *further], files, list(parser._option_string_actions), parser.prog)
        if name == "follow-up":
            _follow_up(given, bundle, files, further)
        else:
            _on_list(given, bundle, files, further)

    def _parser(self, name: str) -> Parser:
        examples = "\n".join(f"  {example}" for example in self.examples)
        parser = Parser(
            prog=f"monai-ext {name}",
            description=self.summary,
            epilog=f"examples:\n{examples}\n\nOptions of the bundle's {self.config}.yaml work too, such as --seed 1.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add = parser.add_argument
        if name == "follow-up":
            _add_sources(parser)
        else:
            add("datalist", metavar="LIST", help="data list (JSON), as monai-ext index writes it")
        add("-o", "--output_dir", metavar="OUT", required=True, help="folder to write to")
        add("--with", dest="overlays", nargs="+", default=[], metavar="NAME", help="further configs of the bundle")
        add("--bundle", metavar="DIR", help="another copy of the bundle")
        add("--trust", action="store_true", help="run a bundle whose configs name code that is not on the list")
        add("--show", action="store_true", help="print the commands that this is made of, and stop")
        return parser


def _add_sources(parser: Parser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", nargs="?", help="DICOM, NIfTI, BIDS or pictures; or a data list (JSON)")
    add("--baseline", metavar="FILE", help="in place of FOLDER: the annotated image")
    add("--mask", metavar="FILE", help="its mask")
    add("--target", metavar="FILE", help="the later image")
    add("--roi", nargs="+", metavar="NAME=REGEX", help="structures by the names of their contours (DICOM)")
    add("--labels", nargs="+", metavar="NAME=VALUE", help="values of the structures in masks that are files")
    add("--modality", help="CT, MR, ...: where the files do not say, or several are there")
    add("--patient_pattern", metavar="REGEX", help="finds (?P<patient>...) and (?P<visit>...) in file names")
    add("--image_pattern", metavar="REGEX", help="takes only images with this in their name (DICOM: description)")
    add("--input", choices=("dicom", "bids", "folder"), help="what FOLDER holds (default: looked at)")
    add("--keep", nargs="+", metavar="NAME=MASK", help="masks that are never painted over, or folders with CASE.nii.gz")
    add("--dicom", choices=("rtstruct", "seg", "none"), help="also write DICOM (default: rtstruct for DICOM input)")


def _on_list(given: argparse.Namespace, bundle: Path, files: Sequence[Path], further: Sequence[str]) -> None:
    from monai_ext.cli.summary import summarise
    from monai_ext.errors import UserError

    if not Path(given.datalist).is_file():
        raise UserError(f"{given.datalist}: there is no such data list; monai-ext index writes one of a folder.")
    step = bundle_step(bundle, files, ["--datalist", given.datalist, "--output_dir", given.output_dir, *further])
    if given.show:
        print(step.command())
        return
    run_bundle(step)
    if "train" in files[0].name:
        weights = Path(given.output_dir) / "model.pt"
        say("trained", str(weights if weights.is_file() else given.output_dir))
    else:  # learners that a stream goes on from are not written again where every case is done
        summarise(Path(given.output_dir), ["learners"] if "stream" in given.overlays else [])


def _follow_up(given: argparse.Namespace, bundle: Path, files: Sequence[Path], further: Sequence[str]) -> None:
    from monai_ext.cli.sources import write_list, writing_command

    out, keep = Path(given.output_dir).expanduser(), _keep(given.keep or [])
    datalist, index, content = _source(given, out)
    doctor = Step("monai_ext.data.doctor.__main__", (str(datalist), "--follow_up", "yes"))
    options = ["--datalist", str(datalist), "--output_dir", str(out), *keep, *further]
    segment = bundle_step(bundle, files, options)
    export = _export(given, index, datalist, out)
    page = Step("monai_ext.evaluation.report.__main__", (str(out), "--follow_up", "--output", str(out / PAGE)))
    if given.show:
        shown = [step.command().replace(".__main__ ", " ") for step in (index, doctor, segment, export, page) if step]
        print("\n".join([writing_command(content, datalist), *shown] if content else shown))
        return
    if content:
        write_list(content, datalist)
        if not given.labels and len(content["labels"]) > 1:
            say("structures", f"{', '.join(content['labels'])}, by their values; name them with --labels NAME=VALUE")
    passed: list[str] = []
    if index:
        told = index.run()
        passed = passed_over(told)
        say("indexed", _kept(told, out / "indexing.txt", 0))
        if passed:
            say("", f"some series or files were passed over; {out / 'indexing.txt'} says why")
        _check_patients(given.folder, datalist)
    say("checked", _check(doctor, out, passed))
    say("segmenting", f"with {bundle.name}, into {out}")
    run_bundle(segment)
    if export:
        with contextlib.redirect_stderr(io.StringIO()) as notes:  # what was left out
            said = export.run()
        say("exported", _kept(said + notes.getvalue(), out / "export.txt", -1 - notes.getvalue().count("\n")))
    page.run()
    from monai_ext.cli.summary import summarise

    summarise(out, [PAGE, *(["dicom"] if export else [])])


def _keep(pairs: Sequence[str]) -> list[str]:
    """Turn NAME=MASK into the option of the bundle.

    Raises:
        UserError: one is not NAME=MASK, or the mask is not there.
    """
    from monai_ext.errors import UserError

    masks = {}
    for pair in pairs:
        name, separator, mask = pair.partition("=")
        if not (name and separator and mask):
            raise UserError(f"--keep: {pair!r} is not NAME=MASK, such as liver=mask.nii.gz.")
        if not Path(mask).expanduser().exists():
            raise UserError(f"--keep {name}: there is no {mask}; name a mask, or a folder with CASE.nii.gz.")
        masks[name] = str(Path(mask).expanduser().absolute())
    return ["--keep", str(masks)] if masks else []


def _source(given: argparse.Namespace, out: Path) -> tuple[Path, Step | None, dict[str, Any]]:
    """Return the data list, and the step or the content that it is made of."""
    from monai_ext.cli.sources import TwoImages, index_step, recognise, two_images
    from monai_ext.errors import UserError

    pair = {option: getattr(given, option) for option in ("baseline", "mask", "target")}
    missing = [f"--{option}" for option, file in pair.items() if file is None]
    if given.folder is None and len(missing) == len(pair):
        raise UserError("name a FOLDER of images, or --baseline, --mask and --target; see monai-ext follow-up --help.")
    if len(missing) < len(pair):
        if given.folder is not None:
            raise UserError("give a FOLDER, or --baseline, --mask and --target, not both.")
        if missing:
            raise UserError(f"{' and '.join(missing)} is missing: --baseline, --mask and --target belong together.")
        return out / "datalist.json", None, two_images(TwoImages(**pair), given.modality, given.labels or [])
    folder = Path(given.folder).expanduser()
    if folder.suffix.lower() == ".json" and folder.is_file():
        return folder, None, {}
    kind = recognise(folder) if given.input is None else given.input
    names = ("roi", "labels", "modality", "patient_pattern", "image_pattern")
    options = {name: getattr(given, name) for name in names}
    return out / "datalist.json", index_step(kind, folder, out / "datalist.json", options), {}


def _export(given: argparse.Namespace, index: Step | None, datalist: Path, out: Path) -> Step | None:
    is_dicom = index is not None and index.words[0] == "dicom"
    kind = given.dicom or ("rtstruct" if is_dicom else "none")
    if kind == "none":
        return None
    words = ["--masks", str(out / "masks"), "--datalist", str(datalist), "--format", kind]
    words += ["--measures", str(out / "volumes.csv"), "--algorithm", "p2sam", "--output", str(out / "dicom")]
    return Step("monai_ext.data.dicom.export", tuple(words))


def passed_over(indexing: str) -> list[str]:
    """Return what the indexing has skipped and why, by what it has printed; series that would be cases come first."""
    lines = iter(indexing.splitlines())
    for line in lines:
        if re.match(r"skipped: \d", line):
            break
    skipped = [line.strip() for line in itertools.takewhile(lambda line: line.startswith("  "), lines)]
    return sorted(skipped, key=lambda line: "/" in line.partition(": ")[0])


def _check_patients(folder: str, datalist: Path) -> None:
    """Refuse a list in which nothing tells which images are of one patient.

    Raises:
        UserError: says how a folder tells it.
    """
    from monai_ext.data.text import read_json
    from monai_ext.errors import UserError

    cases = read_json(datalist)["cases"]
    if cases and all(case.get("patient") is None for case in cases):
        raise UserError(
            f"{folder}: nothing tells which images are of one patient, and in which order: lay them out as "
            r"PATIENT/VISIT/, or give --patient_pattern, as of p01_2.nii.gz '(?P<patient>p\d+)_(?P<visit>\d+)'."
        )


def _check(doctor: Step, out: Path, passed: Sequence[str] = ()) -> str:
    """Run the doctor; return its verdict.

    Args:
        doctor: the step.
        out: takes its findings.
        passed: what the indexing has passed over, which may be why something is missing.

    Raises:
        UserError: its first error.
    """
    from monai_ext.data.doctor.examine import examine
    from monai_ext.data.doctor.findings import stops
    from monai_ext.data.doctor.report import verdict
    from monai_ext.errors import UserError
    from monai_ext.files import atomic_path

    found = examine(doctor.words[0], fast=False, follow_up=True)
    with atomic_path(out / "doctor.txt") as temporary:
        temporary.write_text(
            "".join(f"{one.level}: {one}\n" for one in found) + verdict(found) + "\n", encoding="utf-8"
        )
    if stops(found):
        why = f" (passed over: {passed[0]})" if passed else ""
        raise UserError(f"{_sentence(found[0])}{why}; all that was found is in {out / 'doctor.txt'}")
    return verdict(found) + (f" ({out / 'doctor.txt'})" if found else "")


def _sentence(finding: Any) -> str:
    """Return a finding without what only the doctor's own command line has an option for."""
    return str(finding).partition(", or add --follow_up")[0]


def _kept(text: str, path: Path, line: int) -> str:
    """Keep what a step has printed in a file, and return one of its lines."""
    from monai_ext.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return f"{text.splitlines()[line]} ({path})"


VERBS = {
    "follow-up": BundleVerb(
        "p2sam",
        "inference",
        "Segment a patient's later images from one annotated image (P²SAM).",
        (
            "monai-ext follow-up FOLDER --roi 'tumour=GTV.*' -o OUT",
            "monai-ext follow-up --baseline a.nii.gz --mask m.nii.gz --target b.nii.gz -o OUT",
        ),
    ),
    "segment": BundleVerb(
        "sam_sp",
        "inference",
        "Segment images with a trained segmentor (SAM-SP).",
        ("monai-ext segment list.json -o OUT", "monai-ext segment list.json -o OUT --checkpoint TRAINING/model.pt"),
    ),
    "train-scribbles": BundleVerb(
        "sam_sp",
        "train",
        "Train a segmentor on scribbles (SAM-SP).",
        (
            "monai-ext train-scribbles list.json -o TRAINING --checkpoint sam_vit_h_4b8939.pth",
            "monai-ext train-scribbles list.json -o TRAINING --with reduced --checkpoint compact_chaos",
        ),
    ),
    "few-shot": BundleVerb(
        "apscl",
        "inference",
        "Segment a structure from one annotated slice of another patient (APSCL).",
        (
            "monai-ext few-shot list.json --support CASE:14 --labels \"['spleen']\" -o OUT",
            "monai-ext few-shot list.json --support CASE:14 --labels \"['spleen']\" -o OUT --checkpoint model.pt",
        ),
    ),
    "reference": BundleVerb(
        "prosam",
        "inference",
        "Segment what one reference shows, with an uncertainty (ProSAM).",
        (
            "monai-ext reference list.json -o OUT",
            "monai-ext reference list.json --with support --support CASE:14 --organ spleen -o OUT",
        ),
    ),
    "online": BundleVerb(
        "auxol",
        "inference",
        "Segment images one after the other, learning from each correction (AuxOL).",
        (
            "monai-ext online list.json --with stream -o STREAM",
            'monai-ext online one.json --state_dir STREAM/learners --box "[40,52,118,131]" -o OUT',
        ),
    ),
}
