"""Label maps of a batch of crops on the device of their CAMs; the tensor form of `pipelines.ops.label_map`."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.ops.label_map import IGNORE_INDEX


def background_first(cams: Tensor, present: Tensor, power: float) -> Tensor:
    """Put the background score ``(1 - max_c M_c) ** power`` before the classes (CLIP-ES).

    Args:
        cams: ``(B, K, H, W)`` in [0, 1].
        present: ``(B, K)`` bool: slots that hold a class.
        power: Exponent; larger means less background.

    Returns:
        ``(B, K + 1, H, W)`` in [0, 1]; empty slots are zero.
    """
    cams = cams * present[:, :, None, None]  # (B, K, H, W)
    highest = cams.amax(dim=1, keepdim=True) if cams.shape[1] else cams.new_zeros(len(cams), 1, *cams.shape[2:])
    return torch.cat([(1 - highest).clamp(0, 1) ** power, cams], dim=1)


def online_label_map(scores: Tensor, classes: Tensor, min_confidence: float = 0.0) -> Tensor:
    """Return the class of the highest score at each pixel.

    Args:
        scores: ``(B, K + 1, H, W)``, background first, non-negative.
        classes: ``(B, K)`` int64 class indices, -1 in empty slots.
        min_confidence: Pixels whose highest share of the scores' sum is lower become 255. 0 keeps all.

    Returns:
        ``(B, H, W)`` int64: 0 background, ``i + 1`` for class i, 255 ignored.
    """
    values = torch.cat([classes.new_zeros(len(classes), 1), classes + 1], dim=1)  # (B, K + 1)
    empty = torch.cat([values.new_zeros(len(values), 1), classes < 0], dim=1).bool()  # (B, K + 1)
    highest, slot = scores.masked_fill(empty[:, :, None, None], -1).max(dim=1)  # (B, H, W)
    found = values.gather(1, slot.flatten(1)).view_as(slot)  # (B, H, W)
    if min_confidence > 0:
        confidence = highest / scores.sum(dim=1).clamp_min(torch.finfo(scores.dtype).tiny)
        found = found.masked_fill(confidence < min_confidence, IGNORE_INDEX)
    return found
