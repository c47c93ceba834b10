from __future__ import annotations

import hashlib

import pytest

from monai_ext.data.shards import Shard, parse_shard, shard_of
from monai_ext.errors import UserError


@pytest.mark.parametrize(("text", "shard"), [("0/4", Shard(0, 4)), (" 3/4 ", Shard(3, 4)), ("0/1", Shard(0, 1))])
def test_shards_are_counted_from_0(text, shard):
    assert parse_shard(text) == shard
    assert parse_shard(str(shard)) == shard
    assert parse_shard(None) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4/4", "counted from 0, so the last of 4 is 3/4"),
        ("0/0", "between 1 and"),
        ("0/100000", "between 1 and"),
        ("1", "not of the form i/n"),
        ("1 of 4", "not of the form i/n"),
        ("-1/4", "not of the form i/n"),
        (0.25, "not of the form i/n"),
    ],
)
def test_other_shards_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_shard(text)


def test_a_shard_is_a_matter_of_the_patients_name():
    for name in ("patient001", "p 1", "ä"):
        digest = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
        assert shard_of(name, 7) == digest % 7
    assert [shard_of(f"patient{n:03d}", 4) for n in range(6)] == [2, 2, 2, 1, 0, 3], "never to change"


def test_every_case_is_in_one_shard_and_visits_stay_together():
    cases = [{"case": f"c{n}", "patient": f"p{n // 3}"} for n in range(60)] + [{"case": "alone", "patient": ""}]
    shards = [[case for case in cases if Shard(index, 5).holds(case)] for index in range(5)]
    assert sorted(case["case"] for shard in shards for case in shard) == sorted(case["case"] for case in cases)
    for shard in shards:
        others = [case["patient"] for other in shards if other is not shard for case in other]
        assert not {case["patient"] for case in shard} & set(others)
