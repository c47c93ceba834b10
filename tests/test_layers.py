"""Imports go downwards only (a parse of the source says so), and configs hold no programs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "monai_ext").rglob("*.py"))
CONFIGS = sorted((ROOT / "bundles").glob("*/configs/*.yaml"))

PARTS = {"networks", "losses", "metrics", "transforms", "data"}  # what things are made of; none imports another
RUNS = {"engines", "inferers", "handlers", "evaluation", "session"}  # what runs
BOTTOM = {"configuration", "errors", "files", "grey_values", "made", "processes", "__version__"}
LAYERS: dict[str, set[str]] = {
    **{part: set() for part in BOTTOM},
    "prompts": BOTTOM,
    **{part: {*BOTTOM, "prompts"} for part in PARTS},
    **{run: {*BOTTOM, "prompts", *PARTS} for run in RUNS},
}
LAYERS["files"] |= {"errors"}
LAYERS["made"] |= {"files"}
LAYERS["engines"] |= {"inferers"}
LAYERS["handlers"] |= {"evaluation"}
LAYERS["session"] |= {"handlers", "inferers"}
LAYERS["label"] = {*BOTTOM, "data", "prompts", *PARTS, "engines", "inferers"}
LAYERS["cli"] = {*BOTTOM, "data"}  # calls the others by name, when a step runs
LAYERS["__main__"] = {"cli"}


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Full names of all modules that a file imports, wherever in it."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write the import in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name: str) -> str:
    """The part of monai_ext that a full name or path lies in; "" for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards(path):
    own = layer(name_of(path))
    if not own:
        assert not [name for name in imports(path) if name.startswith("monai_ext")]
        return
    used = {layer(name) for name in imports(path) if name.split(".")[0] == "monai_ext"}
    assert used <= LAYERS[own] | {own}, f"{name_of(path)} imports {sorted(used - LAYERS[own] - {own})}"


def test_every_part_has_its_place():
    parts = {layer(name_of(path)) for path in MODULES} - {""}
    assert parts <= set(LAYERS)


def test_only_one_module_knows_segment_anything():
    users = {name_of(p) for p in MODULES if any(name.split(".")[0] == "segment_anything" for name in imports(p))}
    assert users == {"monai_ext.networks.sam"}


def test_no_inferer_knows_sam():
    for path in (ROOT / "monai_ext" / "inferers").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith("monai_ext.networks.sam")], path.name


def test_prompts_know_neither_monai_nor_networks():
    for path in (ROOT / "monai_ext" / "prompts").glob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"monai", "torchvision", "ignite"}


def test_nothing_imports_bundles():
    for path in MODULES:
        assert "bundles" not in {name.split(".")[0] for name in imports(path)}


def test_bundles_hold_no_code():
    assert not list((ROOT / "bundles").rglob("*.py"))


# ------------------------------------------------------------------------------------------------------- configs


def leaves(content: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of a config that is neither a list nor a dictionary."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from leaves(value)
        else:
            yield str(key), value


def to_python(expression: str) -> ast.AST:
    """Parse a "$" expression, with MONAI's references (@network_def.image_size, @train#dataset) as names."""
    return ast.parse(re.sub(r"@[\w#:]+", "reference", expression[1:].strip()))


def is_plain(expression: str) -> bool:
    """Whether an expression only refers and calls."""
    programs = (
        ast.Lambda,
        ast.ListComp,
        ast.SetComp,
        ast.DictComp,
        ast.GeneratorExp,
        ast.IfExp,
        ast.BoolOp,
        ast.Compare,
        ast.Slice,
    )
    return not any(isinstance(node, programs) for node in ast.walk(to_python(expression)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_config_targets_are_ours_or_monais(path):
    for key, value in leaves(yaml.safe_load(path.read_text(encoding="utf-8"))):
        if key == "_target_":
            assert "." not in value or value.split(".")[0] in ("monai", "torch", "monai_ext"), value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_config_imports_are_ours(path):
    for _, value in leaves(yaml.safe_load(path.read_text(encoding="utf-8"))):
        if isinstance(value, str) and re.match(r"\$\s*(import|from)\b", value):
            for node in ast.walk(to_python(value)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert all(name.split(".")[0] == "monai_ext" for name in names), value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_config_expressions_hold_no_program(path):
    for _, value in leaves(yaml.safe_load(path.read_text(encoding="utf-8"))):
        if isinstance(value, str) and value.startswith("$"):
            assert is_plain(value), value


@pytest.mark.parametrize(
    "expression",
    ["$lambda x: x", "$[i for i in @images]", "$@a if @b else @c", "$@images[:-9]", "$@a or @b", "$@fold == 0"],
)
def test_the_lint_sees_programs(expression):
    assert not is_plain(expression)


@pytest.mark.parametrize("expression", ["$@network_def.to(@device)", "$@train#trainer.run()", "$import torch", "$None"])
def test_the_lint_lets_calls_pass(expression):
    assert is_plain(expression)


def test_there_are_configs_to_check():
    assert {path.name for path in CONFIGS} >= {"inference.yaml", "evaluate.yaml", "train.yaml"}
