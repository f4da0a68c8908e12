"""Several processes that train one model, started by torchrun; one process by default."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pipelines.errors import SsrError

Item = TypeVar("Item")

PATIENCE = timedelta(days=7)
"""Timeout of messages. It is long, because the first process may work on images long before the others have work."""


@dataclass(frozen=True)
class Processes:
    """This process and its peers.

    Attributes:
        rank: Number of this process, from 0; only the first one writes files.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients over the processes, in place.

        One message holds the gradients of all parameters, which are of one dtype. DistributedDataParallel would need every
        process to run the wrapped module's forward pass in each micro-batch, which a process cannot do whose images are all
        bad.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count > 1 and gradients:
            flat = parameters_to_vector(gradients)
            dist.all_reduce(flat)
            vector_to_parameters(flat / self.count, gradients)

    def sum(self, values: Tensor) -> Tensor:
        """Sum values over the processes, in place; no gradient passes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def gather(self, items: list[Item]) -> list[Item]:
        """Return the items of all processes, the first one's first."""
        if self.count == 1:
            return items
        found: list[list[Item]] = [[] for _ in range(self.count)]
        dist.all_gather_object(found, items)
        return [item for own in found for item in own]

    def any(self, flag: bool) -> bool:
        """Return, in all processes alike, whether the flag of any process is set."""
        return True in self.gather([flag])

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's values to every process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined_processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that torchrun started.

    Args:
        device: Requested device; ``cuda`` becomes this process's own GPU.

    Yields:
        This process and its device.

    Raises:
        SsrError: Another process ended too early.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), count), device
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "by peer" in str(error):  # gloo raises no error of its own class
            raise SsrError("another process of this training has ended", "see its own messages") from error
        raise
    finally:
        dist.destroy_process_group()
