"""Agglomerative clusters of a few vectors, the same on every run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def agglomerate(features: NDArray[np.floating], clusters: int) -> NDArray[np.int64]:
    """Join the two clusters of highest mean cosine again and again, until as many are left as wanted.

    Args:
        features: ``(C, F)``, L2-normalised, such as class embeddings.
        clusters: Clusters wanted, 1 to C.

    Returns:
        ``(C,)`` cluster of each vector, numbered in the order of their first members.
    """
    from sklearn.cluster import AgglomerativeClustering  # here, because it takes a second to import

    if len(features) == 1:  # scikit-learn wants two
        return np.zeros(1, np.int64)
    found = AgglomerativeClustering(clusters, metric="cosine", linkage="average").fit_predict(features)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    order: NDArray[np.int64] = np.argsort(np.argsort(first))[inverse].astype(np.int64)
    return order
