"""k-means of many images at once, on their device. It draws nothing: equal vectors make equal clusters."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
"""Lloyd's rounds. More of them lower the inertia of 400 superpixels by less than 0.1 %."""

CANDIDATES = 512
"""Vectors that may become a first centre; of more vectors, that many are taken, evenly spaced, so that memory stays small."""

SAME = 1e-6
"""Squared distance, as a share of the largest squared norm, below which two vectors differ by rounding alone."""


def kmeans(features: Tensor, clusters: int, valid: Tensor | None = None) -> Tensor:
    """Cluster vectors: mean colours (SSR, Eq. 8) or mean DINO features of superpixels, or samples of alignment.

    The first centres are vectors, chosen one after the other, each the one that lowers the inertia most. The host waits for
    nothing, so that a GPU goes on with the next batch; other images and padding change a result by rounding alone.

    Args:
        features: ``(..., S, F)`` fp32.
        clusters: Clusters wanted, C; fewer distinct vectors make fewer.
        valid: ``(..., S)`` bool, False for padding; None: no padding.

    Returns:
        ``(..., S)`` int64 in ``0..C - 1``, the cluster of each vector; anything where padded.
    """
    valid = features.new_ones(features.shape[:-1], dtype=torch.bool) if valid is None else valid
    weight = valid.to(features).unsqueeze(-1)  # (..., S, 1)
    mean = (features * weight).sum(dim=-2, keepdim=True) / weight.sum(dim=-2, keepdim=True).clamp_min(1)  # (..., 1, F)
    features = (features - mean) * weight  # distances stay, and are exact where vectors lie far from 0
    centres, used = _first_centres(features, clusters, valid)  # (..., C, F), (..., C)
    for _ in range(ROUNDS - 1):
        members = one_hot(_nearest(features, centres, used), clusters) * weight  # (..., S, C)
        size = members.sum(dim=-2).unsqueeze(-1)  # (..., C, 1)
        moved = members.transpose(-2, -1) @ features / size.clamp_min(1)  # (..., C, F)
        centres = torch.where(size > 0, moved, centres)  # a centre that lost its vectors stays where it is
    return _nearest(features, centres, used)


def one_hot(cluster: Tensor, clusters: int) -> Tensor:
    """``(..., S)`` clusters as ``(..., S, C)`` fp32. Torch's own reads the largest index, for which the host would wait."""
    return (cluster.unsqueeze(-1) == torch.arange(clusters, device=cluster.device)).float()


def _nearest(features: Tensor, centres: Tensor, used: Tensor) -> Tensor:
    """The centre in use that is nearest to each vector, ``(..., S)``."""
    norms = centres.square().sum(dim=-1).masked_fill(~used, float("inf"))  # (..., C)
    return (norms.unsqueeze(-2) - 2 * features @ centres.transpose(-2, -1)).argmin(dim=-1)


def _first_centres(features: Tensor, clusters: int, valid: Tensor) -> tuple[Tensor, Tensor]:
    """First centres ``(..., C, F)``, and which of them are in use ``(..., C)`` bool: one for each distinct vector at most."""
    index = _candidates(valid)  # (..., Q)
    candidates = _rows(features, index)  # (..., Q, F)
    norms = features.square().sum(dim=-1)  # (..., S)
    products = candidates @ features.transpose(-2, -1)  # (..., Q, S)
    distances = norms.gather(-1, index).unsqueeze(-1) + norms.unsqueeze(-2) - 2 * products  # (..., Q, S)
    rounding = SAME * norms.amax(dim=-1)[..., None, None]  # (..., 1, 1)
    distances = torch.where((distances > rounding) & valid.unsqueeze(-2), distances, 0)
    nearest = distances.amax(dim=(-2, -1), keepdim=True).expand_as(distances[..., :1, :])  # (..., 1, S) of no centre yet
    chosen: list[Tensor] = []
    used: list[Tensor] = []
    for _ in range(clusters):
        best = torch.minimum(distances, nearest).sum(dim=-1).argmin(dim=-1, keepdim=True)  # (..., 1)
        chosen.append(best)
        used.append(nearest.amax(dim=-1) > 0)  # (..., 1)
        nearest = torch.minimum(nearest, _rows(distances, best))
    used[0] = torch.ones_like(used[0])  # vectors that are all the same have a centre too
    return _rows(candidates, torch.cat(chosen, dim=-1)), torch.cat(used, dim=-1)


def _candidates(valid: Tensor) -> Tensor:
    """Evenly spaced places of vectors that are no padding, ``(..., Q)``; the last of a short image comes more than once."""
    count = valid.sum(dim=-1, keepdim=True)  # (..., 1)
    most = min(valid.shape[-1], CANDIDATES)
    spaced = torch.arange(most, device=valid.device) * count.clamp_min(most) // most  # (..., Q)
    return torch.minimum(spaced, (count - 1).clamp_min(0))


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows ``(..., Q, D)`` of ``(..., S, D)``."""
    return matrix.gather(-2, index.unsqueeze(-1).expand(*index.shape, matrix.shape[-1]))
