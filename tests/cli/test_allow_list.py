"""What configs may name: all of ours pass, and what would reach anything else is refused before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from monai_ext.cli.allow_list import refuse_foreign
from monai_ext.errors import UserError

BUNDLES = Path(__file__).parents[2] / "bundles"
CONFIGS = sorted(BUNDLES.glob("*/configs/*.yaml"))
BASES = ("inference.yaml", "train.yaml", "evaluate.yaml", "episodes.yaml", "study.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_our_own_configs_pass(path):
    bases = [path.parent / name for name in BASES if (path.parent / name).is_file()]
    refuse_foreign([*bases, path])


FOREIGN = {
    "a target": {"a": {"_target_": "os.system", "command": "true"}},
    "through a module": {"a": {"_target_": "monai_ext.session.launch.os.system"}},
    "torch's loaders": {"a": {"_target_": "torch.hub.load"}},
    "a private name": {"a": {"_target_": "monai_ext.session._private"}},
    "a computed target": {"a": {"_target_": "$open"}},
    "an import": {"imports": ["$import os"]},
    "two statements": {"imports": ["$import monai_ext.session as s; import os"]},
    "a program": {"a": "$(lambda: 1)()"},
    "a builtin": {"a": "$__import__('os').system('true')"},
    "open": {"a": "$open('file', 'w')"},
    "underscores": {"a": "$().__class__"},
    "through an alias": {"imports": ["$import monai_ext.session as session"], "a": "$session.launch.os.system('true')"},
    "another file": {"a": "%other.yaml::a"},
    "nested": {"a": [{"b": {"_target_": "subprocess.run"}}]},
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_what_is_foreign_is_refused(content, tmp_path):
    file = tmp_path / "inference.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="which is not allowed in a config") as caught:
        refuse_foreign([file])
    assert str(caught.value).startswith(f"{file}: ")
    refuse_foreign([file], trust=True)
