"""Shard that torchrun or Slurm assigns to this process."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pipelines.errors import UsageError
from pipelines.stores.shard import Shard


def shard_of_environment(environment: Mapping[str, str] | None = None) -> tuple[Shard, str] | None:
    """Return the shard that a launcher assigns to this process, and the launcher's name; None without a launcher.

    torchrun sets ``RANK`` and ``WORLD_SIZE``, ``srun`` numbers its tasks, and a Slurm array numbers its jobs. A job of an array
    that runs several tasks under torchrun or srun divides its shard among them.

    Args:
        environment: Variables; default: those of this process.

    Raises:
        UsageError: The variables contradict one another.
    """
    environment = os.environ if environment is None else environment
    names: list[str] = []
    index, count = 0, 1
    for name, rank in (("Slurm array", _array(environment)), _tasks(environment)):
        if rank is not None and rank[1] > 1:
            index, count = index * rank[1] + rank[0], count * rank[1]
            names.append(name)
    return (Shard(index, count), " and ".join(names)) if names else None


def _array(environment: Mapping[str, str]) -> tuple[int, int] | None:
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
    number, first, count = (_number(environment, name) for name in names)
    step = _number(environment, "SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in environment else 1
    index, rest = divmod(number - first, max(1, step))
    if rest or not 0 <= index < count:
        raise UsageError(
            f"array task {number} is not one of {count} from {first} in steps of {step}: shares need an unbroken --array=0-N",
            "--shard INDEX/COUNT sets it",
        )
    return index, count


def _tasks(environment: Mapping[str, str]) -> tuple[str, tuple[int, int] | None]:
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return "torchrun", (_number(environment, "RANK"), _number(environment, "WORLD_SIZE"))
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:  # only srun sets it, a batch script does not
        return "srun", (_number(environment, "SLURM_PROCID"), _number(environment, "SLURM_STEP_NUM_TASKS"))
    return "", None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise UsageError(f"expected a number in {name}, found {text!r}", "--shard INDEX/COUNT sets it")
    return int(text)
