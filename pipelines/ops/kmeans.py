"""k-means, the same on every run."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits


def kmeans(features: NDArray[np.floating], clusters: int, seed: int = 0) -> NDArray[np.int64]:
    """Cluster vectors: mean colours (SSR, Eq. 8) or mean DINO features of superpixels, or samples of alignment.

    Args:
        features: ``(S, F)``.
        clusters: Clusters wanted; fewer distinct vectors make fewer.
        seed: Equal seeds give equal clusters on one machine.

    Returns:
        ``(S,)`` cluster of each vector.
    """
    from sklearn.cluster import KMeans  # here, because it takes a second to import and few runs cluster anything
    from sklearn.exceptions import ConvergenceWarning

    count = min(clusters, len(np.unique(features, axis=0)))
    # one thread: so few points gain nothing from more, and the order of threads would leak into the sums
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # points that differ by rounding alone make fewer clusters
        found: NDArray[np.int64] = KMeans(count, n_init=4, random_state=seed).fit_predict(features).astype(np.int64)
    return found
