"""Column masks: which source patches may spread their activation (SGC, and its control without superpixels).

::

            source patches  ->          A patch whose superpixel shows no activation of the class is no source:
          +---------------------+       its column is zero, so nothing leaks from it, but it may still receive.
    r  |  | . # # . . . . # # . |
    e  |  | . # # . . . . # # . |       # kept columns, . zeroed columns
    c  v  | . # # . . . . # # . |
          +---------------------+
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
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
    mean = cam @ membership.T / membership.sum(dim=1).clamp_min(1e-6)  # (K, S)
    return mean @ membership > threshold  # (K, N)


def token_gate(cam: Tensor, threshold: float) -> Tensor:
    """The same on single patches: the control that says what superpixels add.

    Args:
        cam: ``(K, N)`` in [0, 1].
        threshold: Activation that a patch needs.

    Returns:
        ``(K, N)`` bool.
    """
    return cam > threshold


def colour_clusters(colours: NDArray[np.floating], clusters: int, seed: int = 0) -> NDArray[np.int64]:
    """k-means over the superpixels' mean colours (SSR, Eq. 8).

    Args:
        colours: ``(S, 3)`` mean Lab colour of each superpixel.
        clusters: Clusters wanted; fewer distinct colours make fewer.
        seed: Of k-means.

    Returns:
        ``(S,)`` cluster of each superpixel.
    """
    count = min(clusters, len(np.unique(colours, axis=0)))
    found: NDArray[np.int64] = KMeans(count, n_init=4, random_state=seed).fit_predict(colours).astype(np.int64)
    return found


def colour_mask(cam: Tensor, membership: Tensor, cluster: NDArray[np.int64], high: float, share: float) -> Tensor:
    """SGC to the letter: colour clusters that hold a share of the activation are target (SSR, Eq. 8 and 10).

    Args:
        cam: ``(K, N)`` in [0, 1].
        membership: ``(S, N)``, columns sum to 1.
        cluster: ``(S,)`` cluster of each superpixel (`colour_clusters`).
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
