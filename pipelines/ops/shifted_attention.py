"""Attention with the gradient by one vector: a common shift of the queries, keys and values of all patches.

The mean over patches of a gradient is the gradient by a common shift, divided by the number of patches. GradCAM needs only this
mean, and by a shift the attention's backward pass is one product with the weights instead of five:

* **Values**: a row of weights sums to 1, so a shift of all patches' values moves each output by the shift times one minus
  the row's weights of the prefix tokens.
* **Keys**: a shift of all keys, prefix tokens included, does not change a softmax, so its gradient is minus that of a
  shift of the prefix tokens' keys.
* **Queries**: with O = P V the output, the scores' gradient is P * (G V^T - (G * O) 1); its column sums are V * (P^T G) summed
  over channels, less P^T (G * O) 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def shifted_attention(query: Tensor, key: Tensor, value: Tensor, shift: Tensor, heads: int, prefix: int) -> Tensor:
    """Compute `pipelines.ops.attention.attended_values` with a gradient by ``shift`` alone.

    Args:
        query: Projected queries, ``(B, T, D)``.
        key: Projected keys, ``(B, T, D)``.
        value: Projected values, ``(B, T, D)``.
        shift: ``(B, 3 * D)``, added to queries, keys and values of all patches; must be 0, because only its gradient is used.
        heads: Number of heads; must divide ``D``.
        prefix: Number of tokens before the patches, which the shift does not move.

    Returns:
        ``(B, T, D)`` in the input's dtype. The weights are computed in fp32 and kept in the input's dtype.
    """
    attended: Tensor = _ShiftedAttention.apply(query, key, value, shift, heads, prefix)
    return attended


class _ShiftedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, shift: Tensor, heads: int, prefix: int) -> Tensor:
        split = (*query.shape[:2], heads, -1)
        q, k, v = (part.reshape(split).transpose(1, 2) for part in (query, key, value))  # (B, heads, T, d)
        q = q * q.shape[-1] ** -0.5
        weights = (q @ k.transpose(-2, -1)).float().softmax(dim=-1).to(query.dtype)  # (B, heads, T, T)
        attended = weights @ v  # (B, heads, T, d)
        ctx.save_for_backward(q, k, v, weights, attended)
        ctx.prefix, ctx.dtype = prefix, shift.dtype
        packed: Tensor = attended.transpose(1, 2).flatten(2)  # (B, T, D)
        return packed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, attended = ctx.saved_tensors
        batch, heads, count, width = q.shape
        g = gradient.reshape(batch, count, heads, width).transpose(1, 2)  # (B, heads, T, d)
        row = (g.float() * attended.float()).sum(dim=-1, keepdim=True)  # (B, heads, T, 1)
        both = torch.cat([g, row.to(g.dtype)], dim=-1)  # (B, heads, T, d + 1)
        both = both.narrow(2, ctx.prefix, count - ctx.prefix)  # (B, heads, N, d + 1)
        sums = (weights[:, :, ctx.prefix :].transpose(-2, -1) @ both).float()  # (B, heads, T, d + 1)
        columns = (v.float() * sums[..., :-1]).sum(dim=-1) - sums[..., -1]  # (B, heads, T)
        by_query = width**-0.5 * (columns.unsqueeze(-2) @ k.float())  # (B, heads, 1, d)
        aside = weights[..., : ctx.prefix].float()  # (B, heads, T, P)
        scores = aside * (g.float() @ v[:, :, : ctx.prefix].float().transpose(-2, -1) - row)  # (B, heads, T, P)
        by_key = -scores.sum(dim=-1).unsqueeze(-2) @ q.float()  # (B, heads, 1, d)
        by_value = (1 - aside.sum(dim=-1)).unsqueeze(-2) @ g.float()  # (B, heads, 1, d)
        shift = torch.cat([part.reshape(batch, -1) for part in (by_query, by_key, by_value)], dim=-1)  # (B, 3 * D)
        return None, None, None, shift.to(ctx.dtype), None, None
