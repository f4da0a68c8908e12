"""ExCEL's read-out (Yang et al., CVPR 2025): patches that attend to patches like themselves, and names without what they share.

The last blocks get a second path beside the model's own. In it, queries are compared with queries, keys with keys and values
with values, and there is no MLP; so a patch gathers from its own object, not from the few tokens that collect the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.attention import OpenAttention


def self_correlation(parts: Sequence[Tensor]) -> Tensor:
    """Mean over parts of ``softmax(X X^T / sqrt(d))``, added up over heads.

    Args:
        parts: Queries, keys and values, ``(B, heads, T, d)`` each.

    Returns:
        ``(B, T, T)``; rows sum to the number of heads. One head's map is held at once.
    """
    total: Tensor | None = None
    for part in parts:
        for one in part.unbind(dim=1):  # (B, T, d)
            weights = (one @ one.transpose(1, 2) / one.shape[-1] ** 0.5).softmax(dim=-1)  # (B, T, T)
            total = weights if total is None else total.add_(weights)
    if total is None:
        raise ValueError("expected at least one part")
    return total / len(parts)


def calibrated_tokens(inputs: Sequence[Tensor], attentions: Sequence[OpenAttention]) -> Tensor:
    """Tokens at the end of the second path.

    Args:
        inputs: What enters each of the last blocks on the model's own path, ``(B, T, D)`` each.
        attentions: Their attention, taken apart.

    Returns:
        ``(B, T, D)`` fp32.
    """
    x = inputs[0].float()  # (B, T, D)
    for own, attention in zip(inputs, attentions, strict=True):
        parts = attention.projected(own)
        x = x + attention.joined(self_correlation(parts).unsqueeze(1) @ parts[2])  # one map for all heads
    return x


def distinct_names(pooled: Tensor, text: Tensor) -> Tensor:
    """Names without what they share, weighed by how much the whole image resembles each (CLIP Surgery).

    Patches ``v`` are compared with class c by ``sum_d (v_d T_cd w_c - mean_c' v_d T_c'd w_c')``. That is linear in the patch,
    so that the names are changed instead, once an image.

    Args:
        pooled: The image's token ``(B, E)``.
        text: ``(M, E)``, L2-normalised.

    Returns:
        ``(B, M, E)``.
    """
    likely = (2 * pooled @ text.T).softmax(dim=-1)  # (B, M)
    weighed = (likely / likely.mean(dim=-1, keepdim=True)).unsqueeze(2) * text  # (B, M, E)
    return weighed - weighed.mean(dim=1, keepdim=True)


def normalised_over_tokens(features: Tensor) -> Tensor:
    """Each channel divided by its norm over the tokens ``(B, T, E)``, as the authors' code does it."""
    return F.normalize(features, dim=1)
