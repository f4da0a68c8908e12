"""Column masks: which source patches may spread their activation (SGC, and its control without superpixels).

```text
        source patches  ->          A patch whose superpixel shows no activation of the class is no source:
      +---------------------+       its column is zero, so nothing leaks from it, but it may still receive.
r  |  | . # # . . . . # # . |
e  |  | . # # . . . . # # . |       # kept columns, . zeroed columns
c  v  | . # # . . . . # # . |
      +---------------------+
```
"""

from __future__ import annotations

import torch
from torch import Tensor


def superpixel_gate(cam: Tensor, membership: Tensor, threshold: float) -> Tensor:
    """Keep patches whose superpixels are activated on average.

    Args:
        cam: ``(..., K, N)`` in [0, 1].
        membership: ``(..., S, N)``, columns sum to 1 (`pipelines.ops.superpixels.token_membership`); zero rows are padding.
        threshold: Mean activation that a patch's superpixels must exceed.

    Returns:
        ``(..., K, N)`` bool.
    """
    return _superpixel_mean(cam, membership) @ membership > threshold  # (..., K, N)


def cluster_gate(cam: Tensor, membership: Tensor, members: Tensor, threshold: float) -> Tensor:
    """Keep patches whose superpixels, and the clusters of these, are activated; both means have equal weight.

    The paper's SGC uses colour clusters, which span the whole image. Clusters of superpixels in DINO's feature space follow
    objects, and the superpixels' own mean removes a stray one whose cluster is activated.

    Args:
        cam: ``(..., K, N)`` in [0, 1].
        membership: ``(..., S, N)``, columns sum to 1; zero rows are padding.
        members: ``(..., S, C)``, 1 where a superpixel belongs to a cluster, else 0 (`pipelines.ops.kmeans.one_hot`).
        threshold: Mean activation that a patch must exceed.

    Returns:
        ``(..., K, N)`` bool.
    """
    mean = _superpixel_mean(cam, membership)  # (..., K, S)
    weight = members * membership.sum(dim=-1, keepdim=True)  # (..., S, C) area of each superpixel in its cluster
    cluster_mean = mean @ weight / weight.sum(dim=-2, keepdim=True).clamp_min(1e-6)  # (..., K, C)
    return (mean + cluster_mean @ members.transpose(-2, -1)) / 2 @ membership > threshold  # (..., K, N)


def _superpixel_mean(values: Tensor, membership: Tensor) -> Tensor:
    """Return the area-weighted mean over each superpixel, ``(..., K, S)`` of ``(..., K, N)``."""
    return values @ membership.transpose(-2, -1) / membership.sum(dim=-1).clamp_min(1e-6).unsqueeze(-2)


def token_gate(cam: Tensor, threshold: float) -> Tensor:
    """Keep single patches that are activated: the control that measures what superpixels add.

    Args:
        cam: ``(..., N)`` in [0, 1].
        threshold: Activation that a patch must exceed.

    Returns:
        ``(..., N)`` bool.
    """
    return cam > threshold


def superpixel_features(tokens: Tensor, membership: Tensor) -> Tensor:
    """Return the mean over each superpixel of centred, normalised tokens.

    Args:
        tokens: ``(..., N, D)``.
        membership: ``(..., S, N)``, columns sum to 1; zero rows are padding.

    Returns:
        ``(..., S, D)``, zero in padding.
    """
    unit = torch.nn.functional.normalize(tokens - tokens.mean(dim=-2, keepdim=True), dim=-1)  # (..., N, D)
    return _superpixel_mean(unit.transpose(-2, -1), membership).transpose(-2, -1)


def colour_mask(cam: Tensor, membership: Tensor, members: Tensor, high: float, share: float) -> Tensor:
    """Keep patches in SGC's target clusters: colour clusters that hold a share of the activation (SSR, Eq. 8 and 10).

    Args:
        cam: ``(..., K, N)`` in [0, 1].
        membership: ``(..., S, N)``, columns sum to 1; zero rows are padding.
        members: ``(..., S, C)``, 1 where a superpixel belongs to a cluster, else 0 (`pipelines.ops.kmeans.one_hot`).
        high: Activation from which a patch counts as high-confidence.
        share: Part of a class's activation that its high-confidence patches in a cluster must hold.

    Returns:
        ``(..., K, N)`` bool: patches of which more than half lies in target clusters.
    """
    in_cluster = members.transpose(-2, -1) @ membership  # (..., C, N)
    confident = (cam * (cam > high)) @ in_cluster.transpose(-2, -1)  # (..., K, C)
    target = confident / cam.sum(dim=-1, keepdim=True).clamp_min(1e-12) > share  # (..., K, C)
    return target.to(membership) @ in_cluster > 0.5  # (..., K, N)
