"""Where the bundles are, and which options their config files declare."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from monai_ext.cli.arguments import nearest
from monai_ext.data.text import read_text
from monai_ext.errors import UserError


def bundles_folder() -> Path:
    """Return the folder of the bundles: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "bundles"
    return inside if inside.is_dir() else package.parent / "bundles"


def is_present(name: str) -> bool:
    """Whether this installation or checkout holds a bundle."""
    return (bundles_folder() / name / "configs" / "inference.yaml").is_file()


def find_bundle(name: str, given: str | Path | None = None) -> Path:
    """Return the folder of a bundle, the one the user has given or the one that comes with the package.

    Raises:
        UserError: it is not there.
    """
    if given is None:
        if not is_present(name):
            raise UserError(f"the bundle {name} is not part of this installation: name its folder with --bundle.")
        return bundles_folder() / name
    folder = Path(given).expanduser()
    if not (folder / "configs" / "inference.yaml").is_file():
        raise UserError(f"--bundle {given}: there is no configs/inference.yaml in it; name the folder of a bundle.")
    return folder


def config_files(bundle: Path, names: Sequence[str]) -> list[Path]:
    """Return the config files of a bundle by their names without suffix.

    Raises:
        UserError: the bundle has none of this name; the sentence holds the nearest.
    """
    known = {path.stem: path for path in sorted((bundle / "configs").glob("*.yaml"))}
    for name in names:
        if name not in known:
            raise UserError(f"{bundle.name} has no config {name!r}, {nearest(name, known, 'the folder configs')}")
    return [known[name] for name in names]


def declared_options(files: Sequence[Path]) -> set[str]:
    """Return the names in the first block of config files: those that can be given on the command line."""
    names: set[str] = set()
    for file in files:
        text = read_text(file)
        block = re.split(r"^# ---+", text, flags=re.MULTILINE)
        wanted = block[1] if len(block) > 1 else block[0]
        names |= set(re.findall(r"^(\w+):", wanted, re.MULTILINE))
    return names - {"imports", "initialize", "run", "finalize", "bundle_root", "datalist", "dataset_dir", "output_dir"}


def bundle_options(words: Sequence[str], files: Sequence[Path], own: Sequence[str], program: str) -> list[str]:
    """Return the words of a command line that are options of the bundle; arguments of components hold a ``#``.

    Args:
        words: what the verb itself does not know.
        files: the config files that run.
        own: the verb's own options, for the hint.
        program: such as "monai-ext follow-up".

    Raises:
        UserError: an option that no config file declares, or a word that belongs to no option.
    """
    known = declared_options(files)
    expects_value = False
    for word in words:
        if not word.startswith("--"):
            if not expects_value:
                raise UserError(
                    f"{word!r} belongs to no option: put names with spaces in quotes, or see {program} --help."
                )
            expects_value = False
            continue
        name = word[2:].partition("=")[0]
        if "#" not in name and name not in known:
            hint = nearest(f"--{name}", [*own, *(f"--{one}" for one in known)], program)
            raise UserError(f"unknown option --{name}, {hint}")
        expects_value = "=" not in word
    return list(words)
