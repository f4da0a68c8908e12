"""k-means of many images at once, on their device. No step is random: equal vectors make equal clusters."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
"""Number of Lloyd's rounds. More rounds lower the inertia of 400 superpixels by less than 0.1 %."""

CANDIDATES = 512
"""Number of vectors that may become a first centre; of more vectors an evenly spaced part is used, to save memory."""

SAME = 1e-6
"""Squared distance, as a share of the largest squared norm, below which two vectors differ by rounding alone."""


def kmeans(features: Tensor, clusters: int, valid: Tensor | None = None) -> Tensor:
    """Cluster vectors: mean colours (SSR, Eq. 8) or mean DINO features of superpixels, or samples of the alignment.

    The first centres are vectors, chosen one after the other so that each lowers the inertia most. The host does not wait for
    the device, so that a GPU continues with the next batch; other images and padding change a result by rounding alone.

    Args:
        features: ``(..., S, F)`` fp32.
        clusters: Number of clusters C; fewer distinct vectors make fewer.
        valid: ``(..., S)`` bool, False for padding; None = no padding.

    Returns:
        ``(..., S)`` int64 in ``0..C - 1``, the cluster of each vector; undefined for padding.
    """
    valid = features.new_ones(features.shape[:-1], dtype=torch.bool) if valid is None else valid
    weight = valid.to(features).unsqueeze(-1)  # (..., S, 1)
    mean = (features * weight).sum(dim=-2, keepdim=True) / weight.sum(dim=-2, keepdim=True).clamp_min(1)  # (..., 1, F)
    features = (features - mean) * weight  # distances stay, and are exact if vectors lie far from 0
    centres, used = _first_centres(features, clusters, valid)  # (..., C, F), (..., C)
    for _ in range(ROUNDS - 1):
        members = one_hot(_nearest(features, centres, used), clusters) * weight  # (..., S, C)
        size = members.sum(dim=-2).unsqueeze(-1)  # (..., C, 1)
        moved = members.transpose(-2, -1) @ features / size.clamp_min(1)  # (..., C, F)
        centres = torch.where(size > 0, moved, centres)  # a centre without vectors stays
    return _nearest(features, centres, used)


def one_hot(cluster: Tensor, clusters: int) -> Tensor:
    """Return clusters ``(..., S)`` as ``(..., S, C)`` fp32; torch's own makes the host wait for the device."""
    return (cluster.unsqueeze(-1) == torch.arange(clusters, device=cluster.device)).float()


def _nearest(features: Tensor, centres: Tensor, used: Tensor) -> Tensor:
    """Return the used centre that is nearest to each vector, ``(..., S)``."""
    norms = centres.square().sum(dim=-1).masked_fill(~used, float("inf"))  # (..., C)
    return (norms.unsqueeze(-2) - 2 * features @ centres.transpose(-2, -1)).argmin(dim=-1)


def _first_centres(features: Tensor, clusters: int, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return first centres ``(..., C, F)`` and which are used ``(..., C)`` bool: at most one for each distinct vector."""
    index = _candidates(valid)  # (..., Q)
    candidates = _rows(features, index)  # (..., Q, F)
    norms = features.square().sum(dim=-1)  # (..., S)
    products = candidates @ features.transpose(-2, -1)  # (..., Q, S)
    distances = norms.gather(-1, index).unsqueeze(-1) + norms.unsqueeze(-2) - 2 * products  # (..., Q, S)
    rounding = SAME * norms.amax(dim=-1)[..., None, None]  # (..., 1, 1)
    distances = torch.where((distances > rounding) & valid.unsqueeze(-2), distances, 0)
    nearest = distances.amax(dim=(-2, -1), keepdim=True).expand_as(distances[..., :1, :])  # (..., 1, S), no centre yet
    chosen: list[Tensor] = []
    used: list[Tensor] = []
    for _ in range(clusters):
        best = torch.minimum(distances, nearest).sum(dim=-1).argmin(dim=-1, keepdim=True)  # (..., 1)
        chosen.append(best)
        used.append(nearest.amax(dim=-1) > 0)  # (..., 1)
        nearest = torch.minimum(nearest, _rows(distances, best))
    used[0] = torch.ones_like(used[0])  # equal vectors have one centre
    return _rows(candidates, torch.cat(chosen, dim=-1)), torch.cat(used, dim=-1)


def _candidates(valid: Tensor) -> Tensor:
    """Return evenly spaced places of valid vectors, ``(..., Q)``; an image of few vectors repeats places."""
    count = valid.sum(dim=-1, keepdim=True)  # (..., 1)
    most = min(valid.shape[-1], CANDIDATES)
    spaced = torch.arange(most, device=valid.device) * count.clamp_min(most) // most  # (..., Q)
    return torch.minimum(spaced, (count - 1).clamp_min(0))


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Return rows ``(..., Q, D)`` of ``(..., S, D)``."""
    return matrix.gather(-2, index.unsqueeze(-1).expand(*index.shape, matrix.shape[-1]))
