"""Between host and device, neither of which waits for the other."""

from __future__ import annotations

import torch
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
