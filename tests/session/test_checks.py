from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser

from monai_ext import session
from monai_ext.errors import UserError, find_user_error


class Careful:
    """A component that refuses an option, and draws when it is built."""

    def __init__(self, labels: dict[str, int], mode: str, size: int) -> None:
        torch.rand(3)
        if mode != "good":
            raise UserError(f"mode {mode!r} is unknown.")
        assert labels
        assert size == 256


def parser_of(mode: str) -> ConfigParser:
    config = {
        "imports": ["$import monai_ext.session as session"],
        "mode": mode,
        "label_values": "$1 / 0",
        "network_def": {"_target_": "Nothing.at.all"},
        "inferer": {
            "_target_": f"{__name__}.Careful",
            "labels": "@label_values",
            "mode": "@mode",
            "size": "$@network_def.image_size",
        },
        "tried": "$session.try_out('inferer', 'not there')",
    }
    return ConfigParser(config)


def test_a_component_is_tried_out_without_data_and_network():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    parser_of("good").get_parsed_content("tried")
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError) as error:
        parser_of("bad").get_parsed_content("tried")
    assert str(find_user_error(error.value)) == "mode 'bad' is unknown."


def test_outside_of_a_config_nothing_is_tried_out():
    session.try_out("inferer")


@pytest.mark.parametrize("device", ["gpu", "cuda:77", 3.5])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(UserError, match=f"--device {device} is not at hand: this machine has cpu"):
        session.check_device(device)
    session.check_device("cpu")
    session.check_device(torch.device("cpu"))


def test_numbers_and_names():
    session.at_least(1, epochs=1, epoch_length=None)
    session.multiple_of(16, image_size=32)
    session.one_of(["a", "b"], precision="a", other=None)
    with pytest.raises(UserError, match="--epochs is 0: give 1 or more"):
        session.at_least(1, batch_size=4, epochs=0)
    with pytest.raises(UserError, match="--epoch_length is x: give 1 or more"):
        session.at_least(1, epoch_length="x")
    for size in (0, 8, 40):
        with pytest.raises(UserError, match=f"--image_size is {size}: give a multiple of 16"):
            session.multiple_of(16, image_size=size)
    with pytest.raises(UserError, match="precision 'c' is unknown: choose one of a, b"):
        session.one_of(["a", "b"], precision="c")


def test_shares_lie_between_0_and_1():
    session.share(mirror=0, superpixel_share=0.5, other=None)
    for wrong in (-0.1, 1.5, "x", True):
        with pytest.raises(UserError, match=f"--mirror is {wrong}: give a number from 0 to 1"):
            session.share(superpixel_share=1, mirror=wrong)
