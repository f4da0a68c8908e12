"""Agglomerative clustering of a few vectors; equal input gives equal clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def agglomerate(features: NDArray[np.floating], clusters: int) -> NDArray[np.int64]:
    """Join the two clusters of highest mean cosine repeatedly, until ``clusters`` are left.

    Args:
        features: ``(C, F)``, L2-normalised, such as class embeddings.
        clusters: Number of clusters, 1 to C.

    Returns:
        ``(C,)`` cluster of each vector, numbered in the order of their first members.
    """
    from sklearn.cluster import AgglomerativeClustering  # imported here, because the import takes a second

    if len(features) == 1:  # scikit-learn requires two vectors
        return np.zeros(1, np.int64)
    found = AgglomerativeClustering(clusters, metric="cosine", linkage="average").fit_predict(features)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    order: NDArray[np.int64] = np.argsort(np.argsort(first))[inverse].astype(np.int64)
    return order
