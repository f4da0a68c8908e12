"""Selection of attention layers by the decoder's affinity (RFM of WeCLIP, Zhang et al., CVPR 2024)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Difference = Literal["signed", "absolute"]

ROUNDING = 1e-6
"""Rounding error in the summed attention of a token: a smaller difference does not separate two layers."""


def decoder_affinity(features: Tensor) -> Tensor:
    """Compute the affinity between the decoder's tokens, ``sigmoid(F^T F)``.

    Args:
        features: ``(B, E, h, w)`` fused features, not L2-normalised.

    Returns:
        ``(B, N, N)`` in (0, 1), N = h * w in row-major order; fp32 (fp64 for fp64 features), under autocast too.
    """
    tokens = features.flatten(2).to(torch.promote_types(features.dtype, torch.float32))  # (B, E, N)
    with torch.autocast(features.device.type, enabled=False):
        return (tokens.transpose(1, 2) @ tokens).sigmoid()


def filter_attention(
    attention: Tensor, decoder_affinity: Tensor, difference: Difference = "signed", valid: Tensor | None = None
) -> Tensor:
    """Return the mean of the layers that are near the decoder's affinity A_f, times A_f.

    A layer is kept if its distance ``S_l = sum_ij (A_f - A_l)_ij`` is at most the mean over layers of the same image. If the
    layers differ by rounding alone, all are kept.

    Args:
        attention: ``(L, B, N, N)``, single layers averaged over heads. Rows must not be normalised again after the class
            token's share is dropped: if every row sums to 1, "signed" cannot separate layers and keeps all.
        decoder_affinity: ``(B, N, N)`` in [0, 1].
        difference: Sum of ``A_f - A_l`` ("signed", the authors' code) or of ``|A_f - A_l|`` ("absolute", the paper).
        valid: ``(B, N)`` bool, False for padding; pairs with padding are left out of S. None = no padding.

    Returns:
        ``(B, N, N)``.
    """
    # A_f is the same for all layers: without absolute values it cancels in the comparison.
    gap = (decoder_affinity - attention).abs() if difference == "absolute" else -attention  # (L, B, N, N)
    if valid is None:
        valid = attention.new_ones(attention.shape[1:3], dtype=torch.bool)
    pairs = valid.unsqueeze(2) & valid.unsqueeze(1)  # (B, N, N)
    score = gap.masked_fill(~pairs, 0).sum(dim=(2, 3), dtype=torch.float64)  # (L, B)
    kept = score <= score.mean(dim=0) + ROUNDING * valid.sum(dim=1)  # (L, B)
    share = (kept / kept.sum(dim=0)).to(decoder_affinity.dtype)  # (L, B)
    return (share[:, :, None, None] * attention).sum(dim=0) * decoder_affinity
