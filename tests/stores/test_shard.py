"""Shares of a work list: every id in one share, the same one for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.stores.shard import Shard, id_hash, own_place, shard_folders


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_each_id_is_of_one_share_and_shares_are_alike(count: int) -> None:
    ids = [f"2007_{number:06d}" for number in range(4000)]
    shares = [[one for one in ids if Shard(index, count).holds(one)] for index in range(count)]
    assert sorted(one for share in shares for one in share) == ids
    assert min(map(len, shares)) > 0.6 * len(ids) / count


def test_shares_never_change() -> None:
    """Values as written down: another hash would move images between the shards of a run that goes on."""
    assert [id_hash(one) for one in ("2007_000032", "", "é")] == [1248941131, 0, 235179326]


@pytest.mark.parametrize(("text", "shard"), [("0/1", Shard(0, 1)), ("3/4", Shard(3, 4)), ("007/12", Shard(7, 12))])
def test_text(text: str, shard: Shard) -> None:
    assert Shard.parse(text) == shard
    assert Shard.parse(str(shard)) == shard


@pytest.mark.parametrize("text", ["", "4/4", "-1/4", "1", "1/0", "a/b", "1/2/3", "0/1000000", "1 / 2", "\uff11/2", "0/9999999"])
def test_no_shares(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected a shard .*--shard"):
        Shard.parse(text)


def test_places(tmp_path: Path) -> None:
    output = tmp_path / "cams.h5"
    assert own_place(output, None) == output
    assert own_place(output, Shard(2, 10)) == tmp_path / "shards/2-of-10/cams.h5"
    for name in ("2-of-10", "10-of-11", "1-of-2", "4-of-2", "x-of-2", "01-of-2", "1-of-2.bak"):
        (tmp_path / "shards" / name).mkdir(parents=True)
    assert [shard for shard, _ in shard_folders(tmp_path)] == [Shard(1, 2), Shard(2, 10), Shard(10, 11)]
