"""Writes each bundle as a zip with its sha256, and as a folder for the Hugging Face Hub: ``make bundles``.

A zip unpacks to one folder, which ``python -m monai.bundle run`` runs beside an installed monai-ext. Its weights are
``.pt``, which MONAI's own commands and MONAI Label read. The Hub's folder holds the same, each of the weights as
safetensors besides, and a model card, whose licence is that of the weights; MONAI's own push would write Apache-2.0.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from monai_ext.data.provenance import WeightRecord, read_record, record_path
from monai_ext.files import atomic_path, sha256_of
from monai_ext.session.safetensors import write_safetensors

ROOT = Path(__file__).parents[1]
STRICTEST = {"CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0", "CC BY 4.0": "cc-by-4.0", "CC BY 3.0": "cc-by-3.0"}
"""Licences of weights in the words of the Hub, the strictest first."""

DATE = (1980, 1, 1, 0, 0, 0)  # of all files in a zip: the same bundle gives the same bytes


SAFE = """
A `.safetensors` beside each holds the same tensors and, in its header, the record of the weights (data, patients,
command, licence): give it in place of the `.pt`, with `--checkpoint models/NAME.safetensors`. MONAI Label reads
`models/model.pt`.
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "dist" / "bundles")
    given = parser.parse_args()
    for bundle in sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json")):
        packed = write_zip(bundle, given.output_dir)
        folder = write_hub_folder(bundle, given.output_dir / "huggingface" / bundle.name)
        print(f"{packed}  sha256 {sha256_of(packed)}\n{folder}")


def files_of(bundle: Path) -> dict[str, Path]:
    """Return the files of a bundle that are given away, by their names in it: all but the tables of its results.

    A link to weights becomes a file of its own, and so needs the record of what it leads to.
    """
    found = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name[0] != ".")
    kept = {path.relative_to(bundle): path for path in found}
    records = {name.with_suffix(".json"): record_path(path.resolve()) for name, path in kept.items() if is_link(path)}
    kept |= {name: path for name, path in records.items() if path.is_file()}
    return {name.as_posix(): path for name, path in kept.items() if name.parts[:2] != ("docs", "results")}


def is_link(path: Path) -> bool:
    """Whether weights are a link to others."""
    return path.is_symlink() and path.suffix == ".pt"


def write_zip(bundle: Path, output_dir: Path) -> Path:
    """Write ``<name>_v<version>.zip`` and ``.zip.sha256`` beside it; links become the files that they lead to."""
    path = output_dir / f"{bundle.name}_v{_metadata(bundle)['version']}.zip"
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(files_of(bundle).items()):
            entry = zipfile.ZipInfo(f"{bundle.name}/{name}", DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    with atomic_path(path.with_name(f"{path.name}.sha256")) as temporary:
        temporary.write_text(f"{sha256_of(path)}  {path.name}\n", encoding="utf-8")
    return path


def write_hub_folder(bundle: Path, folder: Path) -> Path:
    """Write the bundle, its weights as safetensors and a model card, README.md, into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, file in files_of(bundle).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for weights in sorted(folder.glob("models/*.pt")):
        write_safetensors(weights)
    (folder / "README.md").write_text(model_card(bundle), encoding="utf-8")
    return folder


def model_card(bundle: Path) -> str:
    """Return the card: licence of the weights, what they are for, what they were trained on, how to run."""
    about = _metadata(bundle)
    weights = {path.name: read_record(path.resolve()) for path in sorted(bundle.glob("models/*.pt"))}
    records = {name: record for name, record in weights.items() if record is not None}
    head = ["---", f"license: {card_licence(records.values())}", "library_name: monai"]
    head += ["tags: [monai, medical, image-segmentation]", "pipeline_tag: image-segmentation", "---"]
    rows = [
        f"| `models/{name}` | {record.licence} | {_data(record)} | `{record.sha256[:16]}` |"
        for name, record in records.items()
    ]
    heads = ["| weights | licence | trained on | sha256 begins |", "|---|---|---|---|"]
    table = [*heads, *rows] if rows else ["No weights come with it yet."]
    run = f"python -m monai.bundle run --config_file \"['{bundle.name}/configs/inference.yaml']\" \\\n"
    run += f"  --bundle_root {bundle.name} --datalist LIST.json --output_dir OUT"
    body = [
        "",
        f"# {about['name']}",
        "",
        about["description"],
        "",
        f"**{about['intended_use']}**",
        "",
        "## Weights",
        "",
    ]
    body += [*table, "", "The licence above is that of the weights, the strictest of them; the code is Apache-2.0."]
    body += [SAFE, *_results(bundle), "## Use", "", "With `monai-ext` installed:", "", "```", run, "```", ""]
    body += ["Limits, options and measured results: [docs/README.md](docs/README.md).", "", "## References", ""]
    return "\n".join([*head, *body, *(f"- {one}" for one in about["references"])]) + "\n"


def card_licence(records: Any) -> str:
    """Return the strictest licence of some weights in the words of the Hub; that of the code where there are none.

    Raises:
        ValueError: a licence that is not known here.
    """
    held = {record.licence for record in records}
    if unknown := held - set(STRICTEST):
        raise ValueError(f"licence {sorted(unknown)[0]!r} has no name on the Hub here: add it to STRICTEST")
    return next((hub for licence, hub in STRICTEST.items() if licence in held), "apache-2.0")


def _results(bundle: Path) -> list[str]:
    """Return the mean Dice of this method in each of its results' files, but those of validation patients."""
    rows = []
    for file in sorted((bundle / "docs" / "results").rglob("summary.json")):
        told, place = json.loads(file.read_text(encoding="utf-8")), file.parent.relative_to(bundle)
        if told["algorithm"] == bundle.name and "validation" not in place.parts:
            dice = told["macro"]["dice"]
            interval = f"[{dice['ci_low']:.3f}, {dice['ci_high']:.3f}]" if told["n_patients"] > 1 else ""
            patients = told["n_patients"]
            rows.append(f"| {told['task']} | {patients} | {dice['mean']:.3f} {interval} | `{place}` |")
    if not rows:
        return ["## Results", "", "Measured results, with their commands: [docs/results.md](docs/results.md).", ""]
    head = [
        "| data | patients | Dice over structures [95 % interval] | files in the repository |",
        "|---|---|---|---|",
    ]
    told_in = "Which weights and which options made each row: [docs/results.md](docs/results.md)."
    return ["## Results", "", *head, *rows, "", told_in, ""]


def _data(record: WeightRecord) -> str:
    told = ((data, f"{len(data.patients)} patients, " if data.patients else "") for data in record.datasets)
    return ", ".join(f"{data.dataset} ({patients}{data.licence})" for data, patients in told)


def _metadata(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
