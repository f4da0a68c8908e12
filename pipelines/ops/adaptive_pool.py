"""Adaptive average pooling as matrix products, which exporters can write for maps of any size."""

from __future__ import annotations

import torch
from torch import Tensor


def adaptive_means(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute what ``torch.nn.functional.adaptive_avg_pool2d`` does.

    Args:
        maps: ``(B, C, H, W)`` float.
        size: ``(h, w)``.

    Returns:
        ``(B, C, h, w)``, the dtype of ``maps``.
    """
    rows, columns = (_shares(maps, axis, bins) for axis, bins in zip((-2, -1), size, strict=True))  # (h, H), (w, W)
    return rows @ maps @ columns.T  # (B, C, h, w)


def _shares(maps: Tensor, axis: int, bins: int) -> Tensor:
    """Return the weight of each row or column in each bin, ``(bins, H)`` or ``(bins, W)``; bins of unequal width overlap."""
    side = maps.shape[axis]
    place = torch.arange(side, device=maps.device)  # (side,)
    number = torch.arange(bins, device=maps.device).unsqueeze(1)  # (bins, 1)
    first, behind = number * side // bins, ((number + 1) * side + bins - 1) // bins  # (bins, 1)
    inside = ((place >= first) & (place < behind)).to(maps.dtype)  # (bins, side)
    return inside / inside.sum(1, keepdim=True)  # (bins, side)
