"""Between host and device, neither of which waits for the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device.

    A GPU copies from pinned memory when its turn comes, so that the host can prepare what follows; a copy from ordinary memory
    would make the host wait for all that the GPU has yet to do.

    Args:
        tensor: Anywhere; on ``device`` it is returned as it is.
        device: Where it is needed.
    """
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fetched(tensor: Tensor) -> Callable[[], NDArray[Any]]:
    """Start to copy a tensor of the device to the host.

    Args:
        tensor: On any device, without a gradient.

    Returns:
        A function that waits until the copy is there and returns it; in the meantime the host can queue more work.
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
