"""Attention against torch's own module, and its weights by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipelines.ops.attention import attended_values, mean_attention


def _projected(attention: nn.MultiheadAttention, tokens: Tensor) -> tuple[Tensor, ...]:
    return nn.functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)


@pytest.mark.parametrize(("batch", "tokens", "width", "heads"), [(1, 1, 8, 1), (2, 5, 8, 2), (3, 7, 12, 4)])
@torch.inference_mode()
def test_same_as_multihead_attention(batch: int, tokens: int, width: int, heads: int) -> None:
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    x = 3 * torch.randn(batch, tokens, width)
    expected, expected_weights = reference(x, x, x, need_weights=True, average_attn_weights=True)
    query, key, value = _projected(reference, x)
    torch.testing.assert_close(reference.out_proj(attended_values(query, key, value, heads)), expected)
    torch.testing.assert_close(mean_attention(query, key, heads), expected_weights)


def test_row_is_the_receiver() -> None:
    query, key = torch.zeros(2, 1, 3, 4).unbind()
    query[0, 0] = 100.0
    key[0, 2] = 1.0  # token 0 looks at token 2, the others look everywhere
    weights = mean_attention(query, key, 1)
    torch.testing.assert_close(weights[0, 0], torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(weights[0, 1:], torch.full((2, 3), 1 / 3))


def test_half_precision_keeps_its_rows() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 50, 16).unbind()
    halves = query.bfloat16(), key.bfloat16(), value.bfloat16()
    attended, weights = attended_values(*halves, 4), mean_attention(*halves[:2], 4)
    assert (attended.dtype, weights.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 50))  # rounded scores, but a softmax in fp32
    torch.testing.assert_close(weights, mean_attention(query, key, 4), atol=2e-2, rtol=0)
    torch.testing.assert_close(attended.float(), attended_values(query, key, value, 4), atol=5e-2, rtol=0)
