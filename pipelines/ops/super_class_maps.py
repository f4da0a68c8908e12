"""Super-class boundary exploration, SBE (CD-CLIP, CVPR 2026): where DINO's features put the borders between coarse classes.

A super-class's CAM pools DINO's features into one prototype; the patches that resemble it make up a map whose borders are
those of the features. Dice compares it with what the decoder gives to the members of the super-class together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.scaling import min_max

UNKNOWN = -1.0
"""Value of super-class maps where a crop is padded, and of super-classes that its photo does not show."""


def pooled_prototypes(maps: Tensor, features: Tensor) -> Tensor:
    """Mean of the patches' features, weighed by each map.

    Args:
        maps: ``(B, K, N)``, non-negative.
        features: ``(B, N, D)``.

    Returns:
        ``(B, K, D)``, L2-normalised; 0 for an empty map.
    """
    return F.normalize(maps @ features, dim=-1)


def boundary_maps(maps: Tensor, features: Tensor, valid: Tensor | None = None) -> Tensor:
    """How much each patch resembles what a map points at: its cosine to the pooled features, 0 where that is negative.

    All patches of a photo have much in common, so the mean of them is taken from the features first: without this, a map
    covers the whole photo.

    Args:
        maps: ``(B, K, N)``, non-negative.
        features: ``(B, N, D)``.
        valid: ``(B, N)`` bool, patches that are photo and not padding. None = all.

    Returns:
        ``(B, K, N)``, each map scaled to [0, 1]; `UNKNOWN` in padding.
    """
    if valid is None:
        valid = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    share = valid.to(features) / valid.sum(dim=1, keepdim=True).clamp_min(1)  # (B, N)
    features = features - torch.einsum("bn,bnd->bd", share, features).unsqueeze(1)  # (B, N, D)
    photo = valid.unsqueeze(1)  # (B, 1, N)
    prototypes = pooled_prototypes(maps * photo, features)  # (B, K, D)
    cosines = (prototypes @ F.normalize(features, dim=-1).transpose(1, 2)).relu()  # (B, K, N)
    lowest = cosines.masked_fill(~photo, float("inf")).amin(dim=-1, keepdim=True)  # (B, K, 1)
    return min_max(torch.where(photo, cosines, lowest)).masked_fill(~photo, UNKNOWN)


def super_probabilities(logits: Tensor, of_class: Tensor, count: int) -> Tensor:
    """Probability of each super-class: the sum over its members.

    Args:
        logits: ``(B, C + 1, N)``, background first.
        of_class: ``(C,)`` int64, super-class of each class.
        count: Number of super-classes S.

    Returns:
        ``(B, S, N)`` in [0, 1]; with the background's they sum to 1.
    """
    probabilities = logits.softmax(dim=1)[:, 1:]  # (B, C, N)
    members = F.one_hot(of_class, count).to(probabilities)  # (C, S)
    return torch.einsum("bcn,cs->bsn", probabilities, members)


def supers_predicted(logits: Tensor, of_class: Tensor, count: int, known: Tensor) -> Tensor:
    """How many super-classes a prediction holds, each patch the one of its likeliest class.

    Args:
        logits: ``(B, C + 1, N)``, background first.
        of_class: ``(C,)`` int64, super-class of each class.
        count: Number of super-classes S.
        known: ``(B, N)`` bool, patches that count.

    Returns:
        ``(B,)`` int64.
    """
    background = of_class.new_tensor([count])  # (1,)
    found = torch.cat([background, of_class])[logits.argmax(dim=1)]  # (B, N)
    found = found.masked_fill(~known, count)
    return F.one_hot(found, count + 1)[..., :count].any(dim=1).sum(dim=1)


def dice_losses(probabilities: Tensor, maps: Tensor) -> Tensor:
    """``1 - 2 sum(P Y) / (sum(P) + sum(Y))`` of each super-class, mean over those that are not `UNKNOWN` in a crop's map.

    Args:
        probabilities: P, ``(B, S, N)``.
        maps: Y, ``(B, S, N)`` in [0, 1] or `UNKNOWN`.

    Returns:
        ``(B,)`` in [0, 1]; 0 for a crop whose map is `UNKNOWN` throughout.
    """
    known = maps >= 0  # (B, S, N)
    targets = maps.clamp_min(0)  # (B, S, N)
    shares = probabilities * known  # (B, S, N)
    both, either = (shares * targets).sum(dim=2), (shares + targets).sum(dim=2)  # (B, S)
    losses = 1 - 2 * both / either.clamp_min(1e-6)  # (B, S)
    shown = known.any(dim=2)  # (B, S)
    return (losses * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1)
