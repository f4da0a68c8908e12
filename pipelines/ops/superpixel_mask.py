"""Column masks made from superpixels (SGC): which source patches may spread their activation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor


def superpixel_gate(cam: Tensor, membership: Tensor, threshold: float) -> Tensor:
    """Keep the patches of superpixels whose mean activation is high.

    Args:
        cam: ``(K, N)`` in [0, 1].
        membership: ``(S, N)``, columns sum to 1 (`token_membership`).
        threshold: Mean activation that a superpixel needs.

    Returns:
        ``(K, N)`` in [0, 1]: the share of each patch that lies in kept superpixels, so a patch cut by a superpixel border
        is kept in part.
    """
    area = membership.sum(dim=1).clamp_min(1e-12)  # (S,)
    mean = cam @ membership.T / area  # (K, S)
    return (mean > threshold).to(cam.dtype) @ membership  # (K, N)


def colour_clusters(colours: NDArray[np.floating], clusters: int, seed: int = 0) -> NDArray[np.int64]:
    """k-means over superpixels' mean Lab colours (SSR, Eq. 8).

    Args:
        colours: ``(S, 3)`` mean Lab colour of each superpixel.
        clusters: Number of clusters; fewer superpixels make fewer.
        seed: Of k-means.

    Returns:
        ``(S,)`` cluster of each superpixel.
    """
    k = min(clusters, len(np.unique(colours, axis=0)))
    labels: NDArray[np.int64] = KMeans(k, n_init=4, random_state=seed).fit_predict(colours).astype(np.int64)
    return labels
