"""Shares that launchers give: torchrun, srun, Slurm arrays, and arrays of either."""

from __future__ import annotations

import pytest

from pipelines.errors import UsageError
from pipelines.execution.environment import shard_of_environment
from pipelines.stores.shard import Shard

TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, (Shard(2, 4), "torchrun")),
        ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, None),
        (ARRAY, (Shard(2, 8), "Slurm array")),
        ({**ARRAY, "SLURM_ARRAY_TASK_STEP": "2"}, (Shard(1, 8), "Slurm array")),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "1"}, None),
        (SRUN, (Shard(1, 3), "srun")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # a batch script itself: one process, not four
        ({**ARRAY, **TORCHRUN}, (Shard(2 * 4 + 2, 32), "Slurm array and torchrun")),
        ({**ARRAY, **SRUN}, (Shard(2 * 3 + 1, 24), "Slurm array and srun")),
        ({**SRUN, **TORCHRUN}, (Shard(2, 4), "torchrun")),
    ],
)
def test_shard(environment: dict[str, str], expected: tuple[Shard, str] | None) -> None:
    assert shard_of_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "11"}, "array task 11 is not one of 8 from 3"),
        ({**ARRAY, "SLURM_ARRAY_TASK_STEP": "3"}, "in steps of 3"),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": ""}, "expected a number in SLURM_ARRAY_TASK_COUNT, found ''"),
        ({**TORCHRUN, "RANK": "x"}, "expected a number in RANK, found 'x'"),
        ({**TORCHRUN, "RANK": "4"}, "expected a shard from 0/4 to 3/4, found 4/4"),
    ],
)
def test_contradictions(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        shard_of_environment(environment)
    assert "--shard" in str(caught.value)


def test_shares_of_an_array_of_launchers_are_all_shares() -> None:
    found = {
        shard_of_environment({**ARRAY, "SLURM_ARRAY_TASK_ID": str(3 + job), "RANK": str(rank), "WORLD_SIZE": "4"})
        for job in range(8)
        for rank in range(4)
    }
    assert found == {(Shard(index, 32), "Slurm array and torchrun") for index in range(32)}
