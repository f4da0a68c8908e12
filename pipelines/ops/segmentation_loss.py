"""What a decoder learns from pseudo labels: classes, and which tokens belong together (WeCLIP, Zhang et al., CVPR 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_of_halves(sums: Tensor, counts: Tensor) -> Tensor:
    """Mean of two means; an empty half is 0.

    Args:
        sums: ``(2,)`` of each half.
        counts: ``(2,)`` what they are divided by: of this batch, or of those of all processes.

    Returns:
        Scalar.
    """
    return (sums / counts.clamp_min(1)).sum() / 2


def cross_entropy_halves(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Sums and pixel counts of `balanced_cross_entropy`, background first: each ``(2,)``."""
    entropy = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")  # (B, H, W)
    background = labels == 0
    foreground = ~background & (labels != ignore_index)
    halves = torch.stack([background, foreground])  # (2, B, H, W)
    return (entropy * halves).sum(dim=(1, 2, 3)), halves.sum(dim=(1, 2, 3)).to(entropy.dtype)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Half the mean cross-entropy over background pixels plus half the mean over foreground pixels.

    Args:
        logits: ``(B, C + 1, H, W)``, channel 0 = background.
        labels: ``(B, H, W)`` int64, 0 = background.
        ignore_index: Label of pixels that do not count.

    Returns:
        Scalar. The means go over the whole batch; a half without pixels is 0.
    """
    return mean_of_halves(*cross_entropy_halves(logits, labels, ignore_index))


def affinity_loss(affinity: Tensor, labels: Tensor, radius: int = 8, ignore_index: int = 255) -> Tensor:
    """Tokens of one class should be alike, tokens of two should not: ``(mean_pos (1 - A) + mean_neg A) / 2``.

    Args:
        affinity: ``(B, N, N)`` in [0, 1], N = h * w in row-major order.
        labels: ``(B, h, w)`` int64 on the token grid.
        radius: Pairs further apart, in the larger of rows and columns, are left out.
        ignore_index: Label of tokens whose pairs are left out.

    Returns:
        Scalar. Pairs are counted over the whole batch in both orders, a token with itself too (it is of one class), and
        1 is added to either count as in the authors' code; so no pairs give 0.
    """
    sums, counts = affinity_halves(affinity, labels, radius, ignore_index)
    return mean_of_halves(sums, counts + 1)


def affinity_halves(affinity: Tensor, labels: Tensor, radius: int = 8, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Sums and pair counts of `affinity_loss`, pairs of one class first: each ``(2,)``."""
    height, width = labels.shape[1:]
    rows, columns = (torch.arange(size, device=labels.device) for size in (height, width))
    position = torch.cartesian_prod(rows, columns)  # (N, 2)
    near = (position.unsqueeze(1) - position).abs().amax(dim=2) <= radius  # (N, N)
    flat = labels.flatten(1)  # (B, N)
    known = flat != ignore_index
    usable = near & known.unsqueeze(2) & known.unsqueeze(1)  # (B, N, N)
    same = flat.unsqueeze(2) == flat.unsqueeze(1)  # (B, N, N)
    positive, negative = usable & same, usable & ~same
    sums = torch.stack([((1 - affinity) * positive).sum(), (affinity * negative).sum()])
    return sums, torch.stack([positive.sum(), negative.sum()]).to(affinity.dtype)
