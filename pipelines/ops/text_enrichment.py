"""Text semantic enrichment: class embeddings move towards similar attributes (ExCEL, CVPR 2025)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.kmeans import kmeans, one_hot

DROPPED = 0.1
"""Share of the attributes, the least similar ones of a class, that are left out."""


def attribute_centres(attributes: Tensor, count: int) -> Tensor:
    """Return the means of clusters of attributes.

    Args:
        attributes: ``(A, E)``, L2-normalised.
        count: Number of clusters; if there are no more attributes than this, the attributes are returned.

    Returns:
        ``(B, E)`` with B at most ``count``, not normalised.
    """
    if len(attributes) <= count:
        return attributes
    members = one_hot(kmeans(attributes, count), count)  # (A, count)
    members = members[:, members.any(dim=0)]  # (A, B)
    return members.T @ attributes / members.sum(dim=0).unsqueeze(1)


def enriched(classes: Tensor, centres: Tensor) -> Tensor:
    """Add similar attributes to each class: ``t + softmax(t A^T) A``, the least similar tenth left out.

    Args:
        classes: ``(C, E)``, L2-normalised.
        centres: A, ``(B, E)``.

    Returns:
        ``(C, E)``, L2-normalised.
    """
    similarity = classes @ centres.T  # (C, B)
    least = similarity.topk(int(DROPPED * len(centres)), dim=1, largest=False).indices  # (C, B / 10)
    weights = similarity.scatter(1, least, float("-inf")).softmax(dim=1)  # (C, B)
    return F.normalize(classes + weights @ centres, dim=1)
