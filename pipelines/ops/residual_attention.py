"""ResCLIP's attention (Yang et al., CVPR 2025): the last block attends as middle blocks do, and inside regions of one label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA = 5.0
"""Standard deviation of the neighbourhood prior, and of the smoothing in `semantic_feedback`, in tokens."""
KERNEL = 31
"""Number of taps of the smoothing."""


def neighbourhood(grid: tuple[int, int]) -> Tensor:
    """Return a Gaussian of the distance between tokens (NACLIP), ``(N, N)`` in (0, 1]."""
    places = _places(grid)  # (N, 2)
    return (-torch.cdist(places, places).square() / (2 * SIGMA**2)).exp()


def cross_correlation(attended: Sequence[tuple[Tensor, Tensor]], value: Tensor) -> Tensor:
    """Average the values that the attention of each other block gathers, head by head (RCS).

    Args:
        attended: Queries and keys of the middle blocks, ``(B, heads, T, d)`` each.
        value: Values of the last block, ``(B, heads, T, d)``.

    Returns:
        ``(B, heads, T, d)``.
    """
    return torch.stack([F.scaled_dot_product_attention(query, key, value) for query, key in attended]).mean(dim=0)


def gathered(key: Tensor, value: Tensor, bias: Tensor, factor: float) -> Tensor:
    """Return the values gathered by ``softmax(factor * K K^T / sqrt(d) + bias)``.

    Args:
        key: ``(B, heads, T, d)``.
        value: ``(B, heads, T, d)``.
        bias: ``(B, 1, T, T)`` or ``(T, T)``.
        factor: Factor of the keys' products.

    Returns:
        ``(B, heads, T, d)``.
    """
    return F.scaled_dot_product_attention(key, key, value, attn_mask=bias, scale=factor / key.shape[-1] ** 0.5)


def semantic_feedback(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return which patches have one label, less where the straight line between them leaves it, smoothed (SFR).

    Args:
        labels: ``(N,)`` int64 labels of a first pass, row-major.
        grid: ``(h, w)``.

    Returns:
        ``(N, N)`` in [0, 1].
    """
    places = _places(grid, labels.device)  # (N, 2)
    same = labels.unsqueeze(1) == labels.unsqueeze(0)  # (N, N)
    straight, steps = same.clone(), max(grid) - 1
    for step in range(1, steps):
        # This is the token nearest to the point at this share of the way; halves are rounded up.
        passed = torch.floor((places.unsqueeze(1) * (steps - step) + places.unsqueeze(0) * step) / steps + 0.5)  # (N, N, 2)
        straight &= labels[(passed[..., 0] * grid[1] + passed[..., 1]).long()] == labels.unsqueeze(1)
    distance = torch.cdist(places, places, p=float("inf"))  # (N, N)
    weights = torch.where(straight, 1.0, (-distance / max(1, steps)).exp()) * same  # (N, N)
    offsets = torch.arange(KERNEL, device=labels.device) - KERNEL // 2
    kernel = (-offsets.square() / (2 * SIGMA**2)).exp()  # (taps,)
    smoothed = F.conv1d(weights.unsqueeze(1), (kernel / kernel.sum()).view(1, 1, -1), padding=KERNEL // 2).squeeze(1)  # (N, N)
    smoothed = smoothed / smoothed.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return smoothed / smoothed.max().clamp_min(1e-12)


def with_prefix(bias: Tensor, prefix: int) -> Tensor:
    """Pad ``(..., N, N)`` to ``(..., P + N, P + N)`` with 0 for tokens that are not patches."""
    return F.pad(bias, (prefix, 0, prefix, 0))


def _places(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    rows, columns = (torch.arange(side, device=device) for side in grid)
    return torch.cartesian_prod(rows, columns).float()  # (N, 2)
