"""Multi-head attention that also returns its weights, averaged over heads."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_with_weights(query: Tensor, key: Tensor, value: Tensor | None, heads: int) -> tuple[Tensor | None, Tensor]:
    """Scaled dot-product attention that keeps what fused kernels throw away.

    Args:
        query: Projected queries, ``(B, T, D)``.
        key: Projected keys, ``(B, T, D)``.
        value: Projected values, ``(B, T, D)``, or None when only the weights are wanted.
        heads: Number of heads; must divide ``D``.

    Returns:
        The attended values ``(B, T, D)`` in the input's dtype (None without ``value``), before the output
        projection, and the attention ``(B, T, T)`` in fp32, averaged over heads. Row = receiver,
        column = source; every row sums to 1.
    """
    batch, tokens, width = query.shape
    split = (batch, tokens, heads, width // heads)
    q = query.view(split).transpose(1, 2)  # (B, heads, T, D / heads)
    k = key.view(split).transpose(1, 2)  # (B, heads, T, D / heads)
    scores = (q * (width // heads) ** -0.5) @ k.transpose(-2, -1)  # (B, heads, T, T)
    weights = torch.softmax(scores.float(), dim=-1)  # (B, heads, T, T)
    attended = None
    if value is not None:
        v = value.view(split).transpose(1, 2)  # (B, heads, T, D / heads)
        attended = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, tokens, width)  # (B, T, D)
    return attended, weights.mean(dim=1)
