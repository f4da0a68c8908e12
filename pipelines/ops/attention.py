"""Multi-head attention: the fused kernel computes its result, and a separate function the mean of its weights over heads.

The output of a block has the same bits whether its weights are computed or not, so that one pass of an encoder can serve parts
that need the weights and parts that do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class OpenAttention:
    """The parts of one block's attention, for methods that combine them in another way than the model.

    Attributes:
        projected: Maps block input ``(B, T, D)`` to queries, keys and values by head, ``(B, heads, T, d)`` fp32 each.
        joined: Maps attended values ``(B, heads, T, d)`` to ``(B, T, D)`` fp32 behind the output projection, without residual.
    """

    projected: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    joined: Callable[[Tensor], Tensor]


def by_head(packed: Tensor, heads: int) -> Tensor:
    """Reshape ``(B, T, heads * d)`` to ``(B, heads, T, d)`` fp32."""
    return packed.reshape(*packed.shape[:2], heads, -1).transpose(1, 2).float()


def packed_heads(apart: Tensor, dtype: torch.dtype) -> Tensor:
    """Reshape ``(B, heads, T, d)`` to ``(B, T, heads * d)``."""
    return apart.transpose(1, 2).flatten(2).to(dtype)


def attended_values(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Compute scaled dot-product attention with the fused kernel, which does not return its weights.

    Args:
        query: Projected queries, ``(B, T, D)``.
        key: Projected keys, ``(B, T, D)``.
        value: Projected values, ``(B, T, D)``.
        heads: Number of heads; must divide ``D``.

    Returns:
        ``(B, T, D)`` in the input's dtype, before the output projection.
    """
    split = (*query.shape[:2], heads, -1)
    q, k, v = (part.view(split).transpose(1, 2) for part in (query, key, value))  # (B, heads, T, D / heads)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def mean_attention(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Compute the weights of scaled dot-product attention, averaged over heads.

    Args:
        query: Projected queries, ``(B, T, D)``.
        key: Projected keys, ``(B, T, D)``.
        heads: Number of heads; must divide ``D``.

    Returns:
        ``(B, T, T)`` fp32; row = receiver, column = source; every row sums to 1. Heads are added one after the other, so that
        memory holds only a few such maps for any number of heads.
    """
    width = query.shape[-1] // heads
    total: Tensor | None = None
    for q, k in zip(query.chunk(heads, dim=-1), key.chunk(heads, dim=-1), strict=True):  # (B, T, D / heads) each
        weights = torch.softmax(((q * width**-0.5) @ k.transpose(-2, -1)).float(), dim=-1)  # (B, T, T)
        total = weights if total is None else total + weights
    if total is None:
        raise ValueError("expected at least one head")
    return total / heads
