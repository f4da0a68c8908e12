"""The processes of one retraining, started by torchrun or Slurm; one process by default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipelines.errors import UsageError
from pipelines.training.processes import Processes, joined_processes

OF_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
"""torchrun's variables, and Slurm's variables for the same."""


@contextmanager
def launched(launcher: str, device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes before mmengine does, so that the others can wait for the first one's writing for any time.

    Args:
        launcher: ``auto`` (torchrun if it started this process), ``none``, ``torchrun`` or ``slurm``, for processes under
            `srun`.
        device: Requested device; ``cuda`` becomes this process's own GPU.

    Yields:
        This process and its device.

    Raises:
        UsageError: The launcher's variables are not set.
    """
    if launcher == "none" or (launcher == "auto" and os.environ.get("WORLD_SIZE", "1") == "1"):
        yield Processes(), device
        return
    wanted = list(OF_SLURM.values()) if launcher == "slurm" else ["WORLD_SIZE", "RANK", "LOCAL_RANK"]
    absent = [name for name in wanted if name not in os.environ]
    if absent:
        raise UsageError(f"no processes of {launcher} to join: {absent[0]} is not set", "--launcher")
    if launcher == "slurm":
        os.environ.update({ours: os.environ[theirs] for ours, theirs in OF_SLURM.items()})
        os.environ.setdefault("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        os.environ.setdefault("MASTER_PORT", "29500")
    with joined_processes(device) as joined:
        yield joined
