"""Attention as affinity between patches: functions that fuse, normalise and propagate it.

All products are with vectors: a squared, symmetrised affinity is two products with a CAM, never an ``N x N x N`` product.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-12
"""Lower bound of the sums of rows and columns, which may be zero."""


def normalise_rows(affinity: Tensor) -> Tensor:
    """Divide each row by its sum; an all-zero row stays zero.

    Args:
        affinity: ``(..., N, N)``, non-negative.
    """
    return affinity / affinity.sum(dim=-1, keepdim=True).clamp_min(EPSILON)


def sinkhorn(affinity: Tensor, rounds: int) -> Tensor:
    """Alternate column and row normalisation (CLIP-ES, Eq. 6: three rounds).

    Only the two scaling vectors are iterated; the matrix is scaled once.

    Args:
        affinity: ``(..., N, N)``, non-negative.
        rounds: Number of column-then-row steps.

    Returns:
        Same shape. After at least one round the sum of every non-empty row is 1 and that of every column nearly 1.
    """
    left = affinity.new_ones(*affinity.shape[:-1], 1)  # (..., N, 1)
    right = torch.ones_like(left)  # (..., N, 1)
    for _ in range(rounds):
        right = 1 / (affinity.transpose(-2, -1) @ left).clamp_min(EPSILON)
        left = 1 / (affinity @ right).clamp_min(EPSILON)
    return left * affinity * right.transpose(-2, -1)


def fuse_attention(clip_attention: Tensor | None, dino_attention: Tensor | None, dino_weight: float) -> Tensor:
    """Return the weighted sum of two attentions on one grid (SSR, Eq. 9: 0.4 CLIP + 0.6 DINO).

    Args:
        clip_attention: ``(..., N, N)``; may be None if ``dino_weight`` is 1.
        dino_attention: ``(..., N, N)``; may be None if ``dino_weight`` is 0.
        dino_weight: Share of DINO in [0, 1].

    Returns:
        ``(..., N, N)``. Both are row-normalised before they are mixed, so that the weight is the true share; a single attention
        is returned unchanged.
    """
    if clip_attention is None or dino_attention is None:
        only = dino_attention if clip_attention is None else clip_attention
        if only is None:
            raise ValueError("no attention to fuse: both are None")
        return only
    if clip_attention.shape != dino_attention.shape:
        raise ValueError(f"grids differ: CLIP {tuple(clip_attention.shape)}, DINO {tuple(dino_attention.shape)}")
    return (1 - dino_weight) * normalise_rows(clip_attention) + dino_weight * normalise_rows(dino_attention)


def propagate(
    affinity: Tensor, cam: Tensor, column_mask: Tensor | None = None, power: int = 2, mask_every_step: bool = False
) -> Tensor:
    """Spread a CAM along the affinity with masked columns: ``(A^power * mask) cam``.

    Args:
        affinity: ``(N, N)``, row = receiver, column = source.
        cam: ``(K, N)``.
        column_mask: ``(K, N)`` weights of the source columns in [0, 1], or None. Column j of the affinity is masked by masking
            ``cam[:, j]``, which gives the same product.
        power: Number of steps.
        mask_every_step: Whether to mask before every step; otherwise only before the first.

    Returns:
        ``(K, N)``.
    """
    for step in range(power):
        if column_mask is not None and (step == 0 or mask_every_step):
            cam = cam * column_mask
        cam = cam @ affinity.transpose(-2, -1)  # (K, N)
    return cam
