"""Super-class boundary exploration, SBE (CD-CLIP, CVPR 2026): DINO's features give the borders between coarse classes.

DINO's features are pooled over a super-class's CAM into one prototype; the patches that resemble it form a map with the borders
of the features. The Dice loss compares this map with the decoder's sum over the members of the super-class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.scaling import min_max

UNKNOWN = -1.0
"""Value of super-class maps in the padding of a crop, and for super-classes that its image does not have."""


def pooled_prototypes(maps: Tensor, features: Tensor) -> Tensor:
    """Return the mean of the patches' features, weighted by each map.

    Args:
        maps: ``(B, K, N)``, non-negative.
        features: ``(B, N, D)``.

    Returns:
        ``(B, K, D)``, L2-normalised; 0 for an empty map.
    """
    return F.normalize(maps @ features, dim=-1)


def boundary_maps(maps: Tensor, features: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the cosine of each patch to the features pooled over a map, with negative values set to 0.

    All patches of an image have much in common, so their mean is subtracted from the features first: without this, a map covers
    the whole image.

    Args:
        maps: ``(B, K, N)``, non-negative.
        features: ``(B, N, D)``.
        valid: ``(B, N)`` bool, False for padding. None = no padding.

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
    """Return the probability of each super-class: the sum over its members.

    Args:
        logits: ``(B, C + 1, N)``, background first.
        of_class: ``(C,)`` int64, super-class of each class.
        count: Number of super-classes S.

    Returns:
        ``(B, S, N)`` in [0, 1]; they and the background's probability sum to 1.
    """
    probabilities = logits.softmax(dim=1)[:, 1:]  # (B, C, N)
    members = F.one_hot(of_class, count).to(probabilities)  # (C, S)
    return torch.einsum("bcn,cs->bsn", probabilities, members)


def supers_predicted(logits: Tensor, of_class: Tensor, count: int, known: Tensor) -> Tensor:
    """Count the super-classes in a prediction; each patch has that of its most probable class.

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
    """Compute the mean of ``1 - 2 sum(P Y) / (sum(P) + sum(Y))`` over the super-classes whose map is not all `UNKNOWN`.

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
