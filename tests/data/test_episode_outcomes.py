"""The table of what came of episodes."""

from __future__ import annotations

import pytest

from monai_ext.data.episode_outcomes import EpisodeOutcome, read_outcomes, write_outcomes
from monai_ext.data.episodes import Episode, SliceName
from monai_ext.errors import UserError

EPISODE = Episode("left kidney", SliceName("Toy", "a", 3), SliceName("Toy", "b", 5))


def test_what_was_written_is_read(tmp_path):
    outcomes = [
        EpisodeOutcome(EPISODE, "p, b", "ok", (6, 2, 2, 90), {"agreement": 0.25, "shift": None}),
        EpisodeOutcome(EPISODE, "p, b", "no_foreground", (0, 0, 8, 92), {"entropy": 0.5}),
    ]
    write_outcomes(tmp_path / "episodes.csv", outcomes)
    one, other = read_outcomes(tmp_path / "episodes.csv")
    assert (one.episode, one.patient, one.status, one.counts) == (EPISODE, "p, b", "ok", (6, 2, 2, 90))
    assert one.features == {"agreement": 0.25, "entropy": None, "shift": None}
    assert other.features == {"agreement": None, "entropy": 0.5, "shift": None}


@pytest.mark.parametrize(("counts", "dice"), [((6, 2, 2, 90), 0.75), ((0, 0, 8, 0), 0.0), ((0, 0, 0, 9), 1.0)])
def test_dice_of_one_query(counts, dice):
    assert EpisodeOutcome(EPISODE, "b", "ok", counts).dice == dice


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "episodes.csv"
    path.write_text("case,dice\na,0.5\n")
    with pytest.raises(UserError, match="is no table of episodes"):
        read_outcomes(path)
    write_outcomes(path, [EpisodeOutcome(EPISODE, "b", "ok", (1, 1, 1, 1))])
    path.write_text(path.read_text().replace(",ok,1,", ",ok,x,"))
    with pytest.raises(UserError, match="cannot be read"):
        read_outcomes(path)
