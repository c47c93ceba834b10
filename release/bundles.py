"""Writes each bundle as a zip with its sha256, and as a folder for the Hugging Face Hub: ``make bundles``.

A zip unpacks to one folder, which ``python -m monai.bundle run`` runs beside an installed monai-ext. The Hub's folder
holds the same and a model card, whose licence is that of the weights; MONAI's own push would write Apache-2.0.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from monai_ext.data.provenance import WeightRecord, read_record
from monai_ext.files import atomic_path, sha256_of

ROOT = Path(__file__).parents[1]
STRICTEST = {"CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0", "CC BY 4.0": "cc-by-4.0", "CC BY 3.0": "cc-by-3.0"}
"""Licences of weights in the words of the Hub, the strictest first."""

DATE = (1980, 1, 1, 0, 0, 0)  # of all files in a zip: the same bundle gives the same bytes


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "dist" / "bundles")
    given = parser.parse_args()
    for bundle in sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json")):
        packed = write_zip(bundle, given.output_dir)
        folder = write_hub_folder(bundle, given.output_dir / "huggingface" / bundle.name)
        print(f"{packed}  sha256 {sha256_of(packed)}\n{folder}")


def files_of(bundle: Path) -> list[Path]:
    """Return the files of a bundle that are given away: all but the tables of its results."""
    found = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name[0] != ".")
    return [path for path in found if path.relative_to(bundle).parts[:2] != ("docs", "results")]


def write_zip(bundle: Path, output_dir: Path) -> Path:
    """Write ``<name>_v<version>.zip`` and ``.zip.sha256`` beside it; links become the files that they lead to."""
    path = output_dir / f"{bundle.name}_v{_metadata(bundle)['version']}.zip"
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files_of(bundle):
            entry = zipfile.ZipInfo(f"{bundle.name}/{file.relative_to(bundle).as_posix()}", DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    with atomic_path(path.with_name(f"{path.name}.sha256")) as temporary:
        temporary.write_text(f"{sha256_of(path)}  {path.name}\n", encoding="utf-8")
    return path


def write_hub_folder(bundle: Path, folder: Path) -> Path:
    """Write the bundle with a model card, README.md, into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for file in files_of(bundle):
        target = folder / file.relative_to(bundle)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    (folder / "README.md").write_text(model_card(bundle), encoding="utf-8")
    return folder


def model_card(bundle: Path) -> str:
    """Return the card: licence of the weights, what they are for, what they were trained on, how to run."""
    about = _metadata(bundle)
    weights = {path: read_record(path) for path in sorted(bundle.glob("models/*.pt")) if not path.is_symlink()}
    records = {path.name: record for path, record in weights.items() if record is not None}
    head = ["---", f"license: {card_licence(records.values())}", "library_name: monai"]
    head += ["tags: [monai, medical, image-segmentation]", "pipeline_tag: image-segmentation", "---"]
    rows = [f"| `models/{name}` | {record.licence} | {_data(record)} |" for name, record in records.items()]
    table = ["| weights | licence | trained on |", "|---|---|---|", *rows] if rows else ["No weights come with it yet."]
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
    body += [*table, "", "The licence above is that of the weights, the strictest of them; the code is Apache-2.0.", ""]
    body += ["## Use", "", "With `monai-ext` installed:", "", "```", run, "```", ""]
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


def _data(record: WeightRecord) -> str:
    return ", ".join(f"{data.dataset} ({len(data.patients)} patients, {data.licence})" for data in record.datasets)


def _metadata(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
