"""Puts the bundles and the cards of data sets into the package when a wheel is built; all else is in setup.cfg.

A checkout, and an editable installation of it, use the folders beside the package.
"""

import json
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
FREE = ("CC BY 3.0", "CC BY 4.0", "Apache-2.0")  # licences of weights that the wheel may hold
LEFT_OUT = shutil.ignore_patterns("results", "*.png", "models")


def is_free(weights: Path) -> bool:
    """Whether the record beside a file of weights says that all may use them."""
    record = weights.with_suffix(".json")
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["licence"] in FREE


class BuildWithBundles(build_py):
    """Copies bundles, with weights under a free licence alone, and cards into the built package."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "monai_ext"
        shutil.copytree(ROOT / "data_manifests", package / "data_manifests", dirs_exist_ok=True)
        for bundle in sorted(path for path in (ROOT / "bundles").iterdir() if (path / "configs").is_dir()):
            target = package / "bundles" / bundle.name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(bundle, target, ignore=LEFT_OUT)
            (target / "models").mkdir()
            for weights in sorted(bundle.glob("models/*.pt")):
                if not weights.is_symlink() and is_free(weights):
                    shutil.copy(weights, target / "models")
                    shutil.copy(weights.with_suffix(".json"), target / "models")


setup(cmdclass={"build_py": BuildWithBundles})
