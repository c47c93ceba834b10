"""The verbs of ``monai-ext``, and how a mistake ends it: one sentence, exit code 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from monai_ext import __version__
from monai_ext.cli.arguments import explained, nearest
from monai_ext.errors import UserError, find_user_error, report_user_errors

MODULES = {
    "index": ("monai_ext.data.indexing.__main__", "Write a data list of a folder or a public data set."),
    "doctor": ("monai_ext.data.doctor.__main__", "Say what is wrong with a data list or a folder of DICOM."),
    "score": ("monai_ext.evaluation.score", "Measure any program's masks against true labels."),
    "compare": ("monai_ext.evaluation.compare", "Compare evaluations of the same cases, with tests."),
    "report": ("monai_ext.evaluation.report.__main__", "Make one page of one or more evaluations."),
    "verify": ("monai_ext.evaluation.verify", "Read the files of a run.json again and say what has changed."),
    "export": ("monai_ext.data.dicom.export", "Write masks as RTSTRUCT or SEG."),
    "safetensors": ("monai_ext.session.safetensors", "Write weights as safetensors, with their record inside."),
    "serve": ("monai_ext.label.__main__", "Prepare a MONAI Label server on a data list."),
}
EXAMPLES = {
    "index": (
        "index dicom FOLDER -o list.json --roi 'tumour=GTV.*'",
        "index bids STUDY -o list.json --labels lesion=1",
    ),
    "doctor": ("doctor list.json", "doctor FOLDER_OF_DICOM --fast"),
    "score": (
        "score --datalist list.json --predictions MASKS --output_dir OUT",
        "score --datalist list.json --predictions MASKS --output_dir OUT --resample",
    ),
    "compare": ("compare one/metrics.csv two/metrics.csv", "compare one/metrics.csv two/metrics.csv --metric hd95_mm"),
    "report": ("report OUT --output report.html", "report ONE TWO --overlays none"),
    "verify": ("verify OUT/run.json", "verify OUT/run.json --data_root /elsewhere"),
    "export": (
        "export --masks OUT/masks --datalist list.json --format rtstruct --output OUT/dicom",
        "export --mask m.nii.gz --series FOLDER --labels tumour=1 --format seg --output m.dcm",
    ),
    "safetensors": (
        "safetensors TRAINING/model.pt",
        "safetensors TRAINING/model.pt --output OUT/model.safetensors",
    ),
    "serve": ("serve list.json --output_dir OUT", "serve --demo --output_dir OUT"),
}


def run() -> None:
    """Run the command line of this process and end it.

    Progress bars go when they are done, so that each stage leaves its line, and are not drawn into files.
    """
    os.environ.setdefault("TQDM_LEAVE", "")  # tqdm takes an empty text for False
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    report_user_errors()
    main(sys.argv[1:])


def main(arguments: Sequence[str]) -> None:
    """Run a command line, such as ``["follow-up", "FOLDER", "-o", "OUT"]``.

    Raises:
        UserError: a mistake of the user, whatever MONAI has wrapped it in.
        SystemExit: after ``--help``, and of a module that ends with a code of its own.
    """
    verb, words = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(_help())
    elif verb == "--version":
        print(__version__)
    else:
        try:
            _dispatch(verb, words)
        except UserError:
            raise
        except Exception as error:
            mistake = find_user_error(error)
            if mistake is None:
                raise
            raise mistake from error


def _dispatch(verb: str, words: Sequence[str]) -> None:
    from monai_ext.cli.bundle_verbs import VERBS

    if verb in VERBS:
        VERBS[verb].main(verb, words)
    elif verb in MODULES:
        _call(verb, words)
    else:
        raise UserError(f"{verb!r} is no verb of monai-ext, {nearest(verb, [*VERBS, *MODULES], 'monai-ext')}")


def _call(verb: str, words: Sequence[str]) -> None:
    """Call the module of a verb. ``--help`` is answered without it, since some take seconds to be imported."""
    module, summary = MODULES[verb]
    if list(words) in (["-h"], ["--help"]):
        examples = "\n".join(f"  monai-ext {example}" for example in EXAMPLES[verb])
        print(f"{summary}\n\nexamples:\n{examples}\n\nmonai-ext {verb} --options lists every option.")
        return
    import importlib

    with explained():
        importlib.import_module(module).main(["--help"] if list(words) == ["--options"] else list(words))


def _help() -> str:
    from monai_ext.cli.bundle_verbs import VERBS
    from monai_ext.cli.bundles import is_present

    there = {name: verb.summary for name, verb in VERBS.items() if is_present(verb.bundle)}
    listed = {**there, **{name: summary for name, (_, summary) in MODULES.items()}}
    verbs = "\n".join(f"  {name:<17}{summary}" for name, summary in listed.items())
    return (
        f"usage: monai-ext VERB ...\n\n{verbs}\n\nexamples:\n  {VERBS['follow-up'].examples[0]}\n"
        "  monai-ext doctor list.json\n\nmonai-ext VERB --help explains one. For research only."
    )
