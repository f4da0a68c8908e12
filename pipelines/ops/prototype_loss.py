"""Contrast between features and prototypes (SSR's L_proto), and the background's share in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def prototype_contrast(features: Tensor, positive: Tensor, prototypes: Tensor, temperature: Tensor | float) -> Tensor:
    """InfoNCE over prototypes: ``-log(exp(s_pos) / sum_k exp(s_k))`` with ``s = cos / temperature``, mean over samples.

    With text prototypes it is SSR's image-to-text term, with image prototypes the text-to-image term; prototypes against
    themselves (``positive = arange``) are pushed apart: the term between classes.

    Args:
        features: ``(S, E)``, L2-normalised.
        positive: ``(S,)`` int64, row of ``prototypes`` each sample belongs to.
        prototypes: ``(M, E)``, L2-normalised; rows that are nobody's positive are negatives alone (background words).
        temperature: Positive.

    Returns:
        Scalar; 0 for no samples.
    """
    if len(features) == 0:
        return features.sum()
    return F.cross_entropy(features @ prototypes.T / temperature, positive)


def background_preference(features: Tensor, prototypes: Tensor, classes: int, temperature: Tensor | float) -> Tensor:
    """Minus the log of the softmax's share that falls on background words, mean over samples.

    Args:
        features: ``(S, E)``, L2-normalised: what lies outside the CAMs.
        prototypes: ``(C + M, E)``, L2-normalised: classes, then background words.
        classes: C.
        temperature: Positive.

    Returns:
        Scalar; 0 for no samples or no background words.
    """
    if len(features) == 0 or len(prototypes) == classes:
        return features.sum() * 0
    logits = features @ prototypes.T / temperature  # (S, C + M)
    return (torch.logsumexp(logits, dim=1) - torch.logsumexp(logits[:, classes:], dim=1)).mean()


def weighted_pool(features: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of an image's projected tokens, L2-normalised (SSR's MAP(CAM_c * v')).

    Args:
        features: ``(B, N, E)``.
        weights: ``(B, K, N)``, non-negative: CAMs, or what they leave.

    Returns:
        ``(B, K, E)``; zero where all weights are.
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
    """The same contrast for every patch: soft labels from the CAM, background from what it leaves.

    Args:
        features: Patches ``(B, N, E)``, L2-normalised.
        weights: ``(B, K, N)``, non-negative: each class's share in a patch.
        classes: ``(B, K)`` int64; -1 in slots that no class fills, whose weights are zero.
        outside: ``(B, N)``, non-negative: the background's share.
        prototypes: ``(C + M, E)``, L2-normalised: classes, then background words.
        class_count: C.
        temperature: Positive.

    Returns:
        Scalar: minus the weighted log-probabilities, mean over patches, summed over classes, mean over images.
    """
    logits = features @ prototypes.T / temperature  # (B, N, C + M)
    total = torch.logsumexp(logits, dim=2)  # (B, N)
    rows = classes.clamp_min(0).unsqueeze(1).expand(-1, logits.shape[1], -1)  # (B, N, K)
    misses = total.unsqueeze(2) - logits.gather(2, rows)  # (B, N, K)
    loss = (weights.transpose(1, 2) * misses).sum(dim=2)  # (B, N)
    if logits.shape[2] > class_count:
        loss = loss + outside * (total - torch.logsumexp(logits[:, :, class_count:], dim=2))
    return loss.mean()
