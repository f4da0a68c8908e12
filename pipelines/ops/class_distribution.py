"""Similarity of patches as Jensen-Shannon divergence of their distributions over class names (CD-CLIP, CVPR 2026).

A patch's distribution holds its similarity to every class and super-class of the dataset, not only to those in the image. Two
patches of one object resemble the same names; a chair's leg and the floor do not, although they may attend to each other.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.scaling import min_max

BLOCK = 1 << 18
"""Number of pairs that are compared at once: 1 MB of scratch memory fits a cache, for any number of patches and classes."""


def class_distributions(features: Tensor, text: Tensor, scale: float, valid: Tensor | None = None) -> Tensor:
    """Return each patch's softmax over names of its cosines, after each name's cosines are scaled to [0, 1].

    Args:
        features: Projected patches ``(B, N, E)``, not necessarily L2-normalised.
        text: ``(M, E)``, L2-normalised.
        scale: Factor of the scaled cosines in the softmax.
        valid: ``(B, N)`` bool, False for padding, which is left out of minimum and maximum. None = no padding.

    Returns:
        ``(B, N, M)``, rows sum to 1.
    """
    cosines = F.normalize(features, dim=-1) @ text.T  # (B, N, M)
    if valid is not None:
        share = valid / valid.sum(dim=1, keepdim=True).clamp_min(1)  # (B, N)
        mean = torch.einsum("bn,bnm->bm", share, cosines).unsqueeze(1)  # (B, 1, M)
        cosines = torch.where(valid.unsqueeze(2), cosines, mean)
    return (scale * min_max(cosines.transpose(1, 2)).transpose(1, 2)).softmax(dim=-1)  # (B, N, M)


def jensen_shannon(distributions: Tensor, block: int = BLOCK) -> Tensor:
    """Compute the Jensen-Shannon divergence of every pair, ``H((p + q) / 2) - (H(p) + H(q)) / 2``, in nats.

    Args:
        distributions: ``(B, N, M)``, rows sum to 1.
        block: Number of pairs that are compared at once.

    Returns:
        ``(B, N, N)`` in [0, log 2], symmetric, 0 on the diagonal.
    """
    p = distributions.clamp_min(torch.finfo(distributions.dtype).tiny)  # (B, N, M)
    batch, count, names = p.shape
    plogp = (p * p.log()).sum(dim=-1)  # (B, N) negative entropies
    columns = p.permute(2, 0, 1).contiguous()  # (M, B, N)
    divergence = p.new_empty(batch, count, count)  # (B, N, N)
    rows = max(1, block // max(1, batch * count))
    for start in range(0, count, rows):
        end = min(start + rows, count)
        # With s = p + q: H(s / 2) = log 2 - (sum of s log s) / 2. Pairs above the diagonal are copied below it.
        slogs = p.new_zeros(batch, end - start, count - start)  # (B, R, N')
        for name in range(names):
            total = columns[name, :, start:end, None] + columns[name, :, None, start:]  # (B, R, N')
            slogs += total.log().mul_(total)
        entropies = plogp[:, start:end, None] + plogp[:, None, start:]  # (B, R, N')
        part = (entropies - slogs).mul_(0.5).add_(math.log(2)).clamp_(0, math.log(2))
        divergence[:, start:end, start:] = part
        divergence[:, start:, start:end] = part.transpose(1, 2)
    divergence.diagonal(dim1=1, dim2=2).zero_()
    return divergence


def similarity_weights(divergence: Tensor, kappa: float, tau: float | None = None, valid: Tensor | None = None) -> Tensor:
    """Return ``exp(-JS / tau)``, which is softmax((1 - JS) / tau) before its rows are divided by their sums.

    Args:
        divergence: ``(B, N, N)``, the result of `jensen_shannon`.
        kappa: ``tau`` in units of the image's median divergence, because distributions are peaked in one image and flat in
            another.
        tau: Fixed temperature; overrides ``kappa``.
        valid: ``(B, N)`` bool, False for padding, which is left out of the median. None = no padding.

    Returns:
        ``(B, N, N)`` in [0, 1].
    """
    if tau is not None:
        return (divergence / -tau).exp()
    pairs = divergence
    if valid is not None:
        pairs = divergence.masked_fill(~(valid.unsqueeze(2) & valid.unsqueeze(1)), float("nan"))
    median = pairs.flatten(1).nanmedian(dim=1).values[:, None, None]  # (B, 1, 1)
    return (divergence / -(kappa * median).clamp_min(torch.finfo(divergence.dtype).tiny)).exp()
