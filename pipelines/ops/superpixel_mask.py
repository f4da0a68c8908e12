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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def superpixel_gate(cam: Tensor, membership: Tensor, threshold: float) -> Tensor:
    """Keep patches whose superpixels are activated on average.

    Args:
        cam: ``(K, N)`` in [0, 1].
        membership: ``(S, N)``, columns sum to 1 (`pipelines.ops.superpixels.token_membership`).
        threshold: Mean activation that a patch's superpixels need.

    Returns:
        ``(K, N)`` bool.
    """
    return _superpixel_mean(cam, membership) @ membership > threshold  # (K, N)


def cluster_gate(cam: Tensor, membership: Tensor, cluster: NDArray[np.int64], threshold: float) -> Tensor:
    """Keep patches whose superpixels, and the clusters these belong to, are activated: half the vote each.

    The paper's SGC asks colour clusters, which span the whole photo. Clusters of superpixels in DINO's feature space follow
    objects, and the superpixels' own vote keeps a stray one from passing with its cluster.

    Args:
        cam: ``(K, N)`` in [0, 1].
        membership: ``(S, N)``, columns sum to 1.
        cluster: ``(S,)`` cluster of each superpixel (`pipelines.ops.kmeans`).
        threshold: Mean activation that a patch needs.

    Returns:
        ``(K, N)`` bool.
    """
    mean = _superpixel_mean(cam, membership)  # (K, S)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(cluster)).to(membership)  # (S, C)
    weight = one_hot * membership.sum(dim=1, keepdim=True)  # (S, C) area of each superpixel in its cluster
    cluster_mean = mean @ weight / weight.sum(dim=0).clamp_min(1e-6)  # (K, C)
    return (mean + cluster_mean @ one_hot.T) / 2 @ membership > threshold  # (K, N)


def _superpixel_mean(values: Tensor, membership: Tensor) -> Tensor:
    """Area-weighted mean over each superpixel, ``(K, S)`` of ``(K, N)``."""
    return values @ membership.T / membership.sum(dim=1).clamp_min(1e-6)


def token_gate(cam: Tensor, threshold: float) -> Tensor:
    """The same on single patches: the control that says what superpixels add.

    Args:
        cam: ``(K, N)`` in [0, 1].
        threshold: Activation that a patch needs.

    Returns:
        ``(K, N)`` bool.
    """
    return cam > threshold


def superpixel_features(tokens: Tensor, membership: Tensor) -> NDArray[np.float32]:
    """Mean over each superpixel of centred, normalised tokens.

    Args:
        tokens: ``(N, D)``.
        membership: ``(S, N)``, columns sum to 1.

    Returns:
        ``(S, D)`` fp32.
    """
    unit = torch.nn.functional.normalize(tokens - tokens.mean(dim=0), dim=1)  # (N, D)
    pooled = _superpixel_mean(unit.T, membership).T  # (S, D)
    features: NDArray[np.float32] = pooled.cpu().numpy()
    return features


def colour_mask(cam: Tensor, membership: Tensor, cluster: NDArray[np.int64], high: float, share: float) -> Tensor:
    """SGC to the letter: colour clusters that hold a share of the activation are target (SSR, Eq. 8 and 10).

    Args:
        cam: ``(K, N)`` in [0, 1].
        membership: ``(S, N)``, columns sum to 1.
        cluster: ``(S,)`` cluster of each superpixel (`pipelines.ops.kmeans`).
        high: Activation from which a patch counts as high-confidence.
        share: Part of a class's activation that its high-confidence patches in a cluster must hold.

    Returns:
        ``(K, N)`` bool: patches that lie in target clusters for the most part.
    """
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(cluster)).to(membership)  # (S, C)
    in_cluster = one_hot.T @ membership  # (C, N)
    confident = (cam * (cam > high)) @ in_cluster.T  # (K, C)
    target = confident / cam.sum(dim=1, keepdim=True).clamp_min(1e-12) > share  # (K, C)
    return target.to(membership) @ in_cluster > 0.5  # (K, N)
