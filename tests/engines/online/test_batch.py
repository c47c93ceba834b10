"""The online batch: what is replaced, and what is not."""

from __future__ import annotations

import pytest
import torch

from monai_ext.engines.online.batch import OnlineBatch, Sample
from monai_ext.errors import UserError


def sample(key: str, loss: float, born: int = 0) -> Sample:
    return Sample(key, torch.zeros(3, 4, 4), torch.zeros(1, 4, 4), loss, born)


def filled(policy: str = "smallest_loss", max_age: int | None = None) -> OnlineBatch:
    batch = OnlineBatch(3, policy, max_age)
    for born, (key, loss) in enumerate((("a", 0.5), ("b", 0.2), ("c", 0.9))):
        batch = batch.insert(sample(key, loss, born))
    return batch


def keys(batch: OnlineBatch) -> list[str]:
    return [one.key for one in batch.samples]


@pytest.mark.parametrize(("loss", "expected"), [(0.3, "acd"), (0.2, "acd"), (0.1, "abc")])
def test_the_easiest_sample_gives_way_unless_the_new_one_is_easier(loss, expected):
    assert "".join(keys(filled().insert(sample("d", loss, 3)))) == expected


def test_the_stored_losses_are_those_of_the_last_pass():
    batch = filled().with_losses([0.1, 0.8, 0.7])
    assert keys(batch.insert(sample("d", 0.3, 3))) == ["b", "c", "d"]


def test_fifo_drops_the_oldest_whatever_its_loss():
    assert keys(filled("fifo").insert(sample("d", 0.0, 3))) == ["b", "c", "d"]


def test_a_correction_of_the_same_key_replaces():
    batch = filled().insert(sample("b", 0.0, 3))
    assert sorted(keys(batch)) == ["a", "b", "c"]
    assert next(one for one in batch.samples if one.key == "b").loss == 0.0


def test_a_sample_leaves_at_its_greatest_age():
    batch = filled(max_age=3).insert(sample("d", 0.0, 3))
    assert keys(batch) == ["b", "c", "d"]  # a is three corrections old


def test_it_never_exceeds_its_size_and_changes_nothing_that_is_there():
    batch = filled()
    before = keys(batch)
    for number in range(20):
        batch.insert(sample(str(number), 1.0, number))
        assert len(batch.insert(sample(str(number), 1.0, number)).samples) == 3
    assert keys(batch) == before


@pytest.mark.parametrize("options", [{"size": 0}, {"policy": "random"}, {"max_age": 0}])
def test_impossible_batches_are_refused(options):
    with pytest.raises(UserError):
        OnlineBatch(**options)
