"""Multi-head attention: its result by the fused kernel, and its weights averaged over heads, each by itself.

A block's output has the same bits whether its weights are asked for or not, so that one pass of an encoder can serve
parts that need them and parts that do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class OpenAttention:
    """One block's attention, taken apart, for parts of the method that attend otherwise than the model does.

    Attributes:
        projected: Block input ``(B, T, D)`` to queries, keys and values by head, ``(B, heads, T, d)`` fp32 each.
        joined: Attended values ``(B, heads, T, d)`` to ``(B, T, D)`` fp32 behind the output projection, without residual.
    """

    projected: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    joined: Callable[[Tensor], Tensor]


def by_head(packed: Tensor, heads: int) -> Tensor:
    """``(B, T, heads * d)`` to ``(B, heads, T, d)`` fp32."""
    return packed.reshape(*packed.shape[:2], heads, -1).transpose(1, 2).float()


def packed_heads(apart: Tensor, dtype: torch.dtype) -> Tensor:
    """``(B, heads, T, d)`` to ``(B, T, heads * d)``."""
    return apart.transpose(1, 2).flatten(2).to(dtype)


def attended_values(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention without its weights.

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
    """The weights of scaled dot-product attention, averaged over heads, which are added up one after the other.

    Args:
        query: Projected queries, ``(B, T, D)``.
        key: Projected keys, ``(B, T, D)``.
        heads: Number of heads; must divide ``D``.

    Returns:
        ``(B, T, T)`` fp32; row = receiver, column = source; every row sums to 1. Only a few such
        maps are held at once, whatever the number of heads.
    """
    width = query.shape[-1] // heads
    total: Tensor | None = None
    for q, k in zip(query.chunk(heads, dim=-1), key.chunk(heads, dim=-1), strict=True):  # (B, T, D / heads) each
        weights = torch.softmax(((q * width**-0.5) @ k.transpose(-2, -1)).float(), dim=-1)  # (B, T, T)
        total = weights if total is None else total + weights
    if total is None:
        raise ValueError("expected at least one head")
    return total / heads
