"""Scaling of maps to [0, 1]."""

from __future__ import annotations

from torch import Tensor


def min_max(maps: Tensor, epsilon: float = 1e-14) -> Tensor:
    """Scale each map to [0, 1]: ``(M - min) / (max - min)``.

    CLIP-ES adds 1e-7 to the denominator twice, which cancels: the maximum is 1 for any positive maximum of the map.

    Args:
        maps: ``(..., N)``.
        epsilon: Addend of the denominator, which keeps an all-equal map at zero.

    Returns:
        Same shape and dtype.
    """
    shifted = maps - maps.amin(dim=-1, keepdim=True)
    return shifted / shifted.amax(dim=-1, keepdim=True).clamp_min(epsilon)
