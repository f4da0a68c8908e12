"""Counts of shards: added in any order to those of the whole; files that are damaged or of another evaluation are refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import SsrError
from pipelines.evaluation.counted import Counted, add_counted, read_counted, write_counted
from pipelines.evaluation.plausibility import Plausibility

TRUTH = Plausibility(2, 1, 0, (2, 1), (0, 1))


def counted(seed: int, **changes: Any) -> Counted:
    draw = np.random.default_rng(seed)
    totals: dict[float | None, Any] = {power: draw.integers(0, 2**40, (3, 4)) for power in (1.5, 1.0)}
    names = ("background", "cat", "dog")
    made = Counted("cams", "train", names, totals, seed, 1, "ab12", False, False, False, False, True, False, TRUTH)
    return dataclasses.replace(made, **changes)


def same(one: Counted, other: Counted) -> bool:
    plain = [dataclasses.replace(each, totals={}) for each in (one, other)]
    return plain[0] == plain[1] and json.dumps([[p, m.tolist()] for p, m in one.totals.items()]) == json.dumps(
        [[p, m.tolist()] for p, m in other.totals.items()]
    )


def test_in_any_order() -> None:
    shards = [counted(seed) for seed in range(4)]
    sums = [add_counted(order) for order in itertools.permutations(shards)]
    assert all(same(found, sums[0]) for found in sums)
    assert (sums[0].images, sums[0].failed, sums[0].truth) == (6, 4, Plausibility(8, 4, 0, (8, 4), (0, 4)))
    assert sums[0].totals[1.5][2, 1] == sum(int(shard.totals[1.5][2, 1]) for shard in shards)


@pytest.mark.parametrize("totals", [{None: np.zeros((3, 4), np.int64)}, counted(3).totals])
def test_round_trip(tmp_path: Path, totals: Any) -> None:
    made = counted(5, totals=totals, boundary=None)
    write_counted(tmp_path / "a/c.json", made)
    assert same(read_counted(tmp_path / "a/c.json"), made)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"options_digest": "cd"}, "options_digest"),
        ({"names": ("background", "cat", "cow")}, "names"),
        ({"split": "val"}, "split"),
    ],
)
def test_other_evaluations(change: dict[str, Any], what: str) -> None:
    with pytest.raises(SsrError, match=f"shards of eval cams differ in {what} "):
        add_counted([counted(1), counted(2, **change)])
    with pytest.raises(SsrError, match="differ in background_power"):
        add_counted([counted(1), counted(2, totals={None: np.zeros((3, 4), np.int64)})])


@pytest.mark.parametrize(
    "change",
    [
        {"totals": [[1.0, [[1.5, 2, 3, 4]] * 3]]},
        {"totals": [[1.0, [[1, 2, 3]] * 3]]},
        {"totals": [[1.0, [[-1, 2, 3, 4]] * 3]]},
        {"totals": []},
        {"totals": 3},
        {"names": None},
        {"more": 1},
    ],
)
def test_damaged_files(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "c.json"
    write_counted(path, counted(1))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SsrError, match=r"c\.json is damaged .*ssr eval"):
        read_counted(path)
