"""Copies between host and device during which neither waits for the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on the device.

    A GPU copies from pinned memory when earlier work is done, while the host prepares the next; a copy from ordinary memory
    would make the host wait for all queued work of the GPU.

    Args:
        tensor: Tensor on any device; on ``device`` it is returned unchanged.
        device: Target device.
    """
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fetched(tensor: Tensor) -> Callable[[], NDArray[Any]]:
    """Start to copy a tensor of the device to the host.

    Args:
        tensor: Tensor on any device, without a gradient.

    Returns:
        A function that waits for the copy and returns it; in the meantime the host can queue more work.
    """
    if not tensor.is_cuda:
        return tensor.numpy
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> NDArray[Any]:
        arrived.synchronize()
        return copy.numpy()

    return wait
