"""Contrast between features and prototypes (SSR's L_proto), and the background's share in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def prototype_contrast(features: Tensor, positive: Tensor, prototypes: Tensor, temperature: Tensor | float) -> Tensor:
    """Compute InfoNCE over prototypes: ``-log(exp(s_pos) / sum_k exp(s_k))`` with ``s = cos / temperature``, mean over samples.

    With text prototypes it is SSR's image-to-text term and with image prototypes the text-to-image term. Prototypes as their
    own samples (``positive = arange``) give the term between classes, which pushes them apart.

    Args:
        features: ``(S, E)``, L2-normalised.
        positive: ``(S,)`` int64, the row of ``prototypes`` of each sample.
        prototypes: ``(M, E)``, L2-normalised; rows without a sample are only negatives (background words).
        temperature: Positive number or scalar.

    Returns:
        Scalar; 0 for no samples.
    """
    if len(features) == 0:
        return features.sum()
    return F.cross_entropy(features @ prototypes.T / temperature, positive)


def background_preference(features: Tensor, prototypes: Tensor, classes: int, temperature: Tensor | float) -> Tensor:
    """Return minus the log of the softmax's share of background words, mean over samples.

    Args:
        features: ``(S, E)``, L2-normalised: vectors from outside the CAMs.
        prototypes: ``(C + M, E)``, L2-normalised: classes, then background words.
        classes: Number of classes C.
        temperature: Positive number or scalar.

    Returns:
        Scalar; 0 for no samples or no background words.
    """
    if len(features) == 0 or len(prototypes) == classes:
        return features.sum() * 0
    logits = features @ prototypes.T / temperature  # (S, C + M)
    return (torch.logsumexp(logits, dim=1) - torch.logsumexp(logits[:, classes:], dim=1)).mean()


def weighted_pool(features: Tensor, weights: Tensor) -> Tensor:
    """Return the L2-normalised weighted mean of an image's projected tokens (SSR's MAP(CAM_c * v')).

    Args:
        features: ``(B, N, E)``.
        weights: ``(B, K, N)``, non-negative: CAMs, or their complement.

    Returns:
        ``(B, K, E)``; zero where all weights are zero.
    """
    return F.normalize(weights @ features / weights.sum(dim=2, keepdim=True).clamp_min(1e-6), dim=2)


def token_contrast(
    features: Tensor,
    weights: Tensor,
    classes: Tensor,
    outside: Tensor,
    prototypes: Tensor,
    class_count: int,
    temperature: Tensor | float,
) -> Tensor:
    """Compute the contrast for every patch, with soft labels from the CAM and its complement as background.

    Args:
        features: Patches ``(B, N, E)``, L2-normalised.
        weights: ``(B, K, N)``, non-negative: each class's share in a patch.
        classes: ``(B, K)`` int64; -1 in empty slots, whose weights are zero.
        outside: ``(B, N)``, non-negative: the background's share.
        prototypes: ``(C + M, E)``, L2-normalised: classes, then background words.
        class_count: Number of classes C.
        temperature: Positive number or scalar.

    Returns:
        Scalar: minus the weighted log-probabilities, mean over patches, sum over classes, mean over images.
    """
    logits = features @ prototypes.T / temperature  # (B, N, C + M)
    total = torch.logsumexp(logits, dim=2)  # (B, N)
    rows = classes.clamp_min(0).unsqueeze(1).expand(-1, logits.shape[1], -1)  # (B, N, K)
    misses = total.unsqueeze(2) - logits.gather(2, rows)  # (B, N, K)
    loss = (weights.transpose(1, 2) * misses).sum(dim=2)  # (B, N)
    if logits.shape[2] > class_count:
        loss = loss + outside * (total - torch.logsumexp(logits[:, :, class_count:], dim=2))
    return loss.mean()
