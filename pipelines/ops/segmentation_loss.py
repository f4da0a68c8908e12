"""Losses of a decoder against pseudo labels: of classes, and of pairs of tokens (WeCLIP, Zhang et al., CVPR 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_of_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of the means ``sums / counts``; a mean over nothing is 0.

    Args:
        sums: ``(n,)``.
        counts: ``(n,)`` numbers of terms: of this batch, or of the batches of all processes.

    Returns:
        Scalar.
    """
    return (sums / counts.clamp_min(1)).sum() / len(sums)


def cross_entropy_halves(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of background and foreground pixels apart, so that a rare foreground has equal weight.

    Args:
        logits: ``(B, C + 1, H, W)``, channel 0 = background.
        labels: ``(B, H, W)`` int64, 0 = background.
        ignore_index: Label of pixels that are left out.

    Returns:
        Sums and pixel counts, background first: each ``(2,)``. `mean_of_means` turns them into the loss.
    """
    entropy = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")  # (B, H, W)
    background = labels == 0
    foreground = ~background & (labels != ignore_index)
    halves = torch.stack([background, foreground])  # (2, B, H, W)
    return (entropy * halves).sum(dim=(1, 2, 3)), halves.sum(dim=(1, 2, 3)).to(entropy.dtype)


def affinity_halves(affinity: Tensor, labels: Tensor, radius: int = 8, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Sum the errors of pairs of tokens: 1 - A for pairs of one class, A for pairs of two classes.

    Args:
        affinity: ``(B, N, N)`` in [0, 1], N = h * w in row-major order.
        labels: ``(B, h, w)`` int64 on the token grid.
        radius: Pairs further apart, in the larger of rows and columns, are left out.
        ignore_index: Label of tokens whose pairs are left out.

    Returns:
        Sums and pair counts, pairs of one class first: each ``(2,)``. Pairs are counted over the whole batch in both orders,
        and each token forms a pair of one class with itself.
    """
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
