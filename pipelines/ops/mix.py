"""Weighted mixture of maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipelines.ops.scaling import min_max


def mix(weighted: Sequence[tuple[float | Tensor, Tensor]]) -> Tensor:
    """Scale maps to [0, 1], add them by weight, and scale the sum to [0, 1].

    Args:
        weighted: Pairs of a weight, which is a number or ``(T, 1)``, and maps ``(T, N)``.

    Returns:
        ``(T, N)`` in [0, 1].
    """
    (weight, maps), *others = weighted
    total = weight * min_max(maps)  # (T, N)
    for weight, maps in others:
        total = total + weight * min_max(maps)
    return min_max(total)
