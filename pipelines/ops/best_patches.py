"""Score of each class from its map: the mean over the best patches."""

from __future__ import annotations

from torch import Tensor


def best_patches(maps: Tensor, share: float) -> Tensor:
    """Return the mean of the highest values of each map; one patch is too noisy, and the mean of all measures size.

    Args:
        maps: ``(..., N)``.
        share: Share of the N patches that are averaged, in (0, 1]; at least one patch is.

    Returns:
        ``(...)``.
    """
    count = max(1, round(share * maps.shape[-1]))
    return maps.topk(count, dim=-1).values.mean(dim=-1)
