"""Prototypes: one vector for each class and modality, from class labels or from k-means (SSR, CMPA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.kmeans import kmeans


@dataclass(frozen=True)
class Clusters:
    """Prototypes and the prototype of each sample.

    Attributes:
        prototypes: ``(K, E)`` fp32, L2-normalised.
        index: ``(S,)`` int64, the prototype of each sample.
    """

    prototypes: Tensor
    index: Tensor


def class_means(features: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return one prototype for each class: the direction of the mean of its samples.

    Args:
        features: ``(S, E)``, L2-normalised.
        classes: ``(S,)`` int64 in ``0..count - 1``.
        count: Number of classes K.

    Returns:
        ``(K, E)`` L2-normalised, zero for a class without samples, and ``(K,)`` bool: classes that have samples.
    """
    total = features.new_zeros(count, features.shape[1]).index_add_(0, classes, features)  # (K, E)
    return F.normalize(total, dim=1), torch.bincount(classes, minlength=count) > 0


def kmeans_prototypes(features: Tensor, count: int) -> Clusters:
    """Cluster one modality's features by k-means; centres are scaled to unit length.

    Args:
        features: ``(S, E)``, L2-normalised.
        count: Number of clusters; fewer distinct features make fewer.

    Returns:
        ``min(count, distinct features)`` prototypes and the prototype of every sample.
    """
    features = features.detach()
    used, index = torch.unique(kmeans(features, count), return_inverse=True)  # (K,), (S,): drops clusters without samples
    return Clusters(class_means(features, index, len(used))[0], index)


def purity(cluster: Tensor, classes: Tensor) -> float:
    """Return the share of samples whose class is the most frequent one of their cluster.

    Args:
        cluster: ``(S,)`` int64.
        classes: ``(S,)`` int64.

    Returns:
        In (0, 1]; 1 for no samples.
    """
    if len(classes) == 0:
        return 1.0
    width = int(classes.max()) + 1
    table = torch.bincount(cluster * width + classes, minlength=(int(cluster.max()) + 1) * width).view(-1, width)
    return table.amax(dim=1).sum().item() / len(classes)


def spread(features: Tensor, classes: Tensor, count: int) -> tuple[float, float | None]:
    """Measure how tight classes are and how far apart, as cosine distances that need no ground truth.

    Args:
        features: ``(S, E)``, L2-normalised.
        classes: ``(S,)`` int64.
        count: Number of classes.

    Returns:
        Mean distance of samples to their own class's mean (NaN for no samples), and mean distance between the means of two
        classes (None for fewer than two).
    """
    means, present = class_means(features, classes, count)
    within = (1 - (features * means[classes]).sum(dim=1)).mean().item() if len(classes) else float("nan")
    means = means[present]
    pairs = len(means) * (len(means) - 1)
    between = ((1 - means @ means.T).sum() / pairs).item() if pairs else None
    return within, between
