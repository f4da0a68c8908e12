from __future__ import annotations

import pytest
import torch

from pipelines.ops.attention import attended_values
from pipelines.ops.shifted_attention import shifted_attention


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_gradient_by_a_shift_is_that_of_the_plain_attention(prefix: int) -> None:
    torch.manual_seed(prefix)
    query, key, value = torch.randn(3, 2, 7, 12, dtype=torch.float64).unbind()
    shift = torch.zeros(2, 36, dtype=torch.float64, requires_grad=True)
    patches = (torch.arange(7) >= prefix).view(1, 7, 1)
    moved = (part + patches * move[:, None] for part, move in zip((query, key, value), shift.chunk(3, dim=1), strict=True))
    expected = attended_values(*moved, heads=3)
    found = shifted_attention(query, key, value, shift, 3, prefix)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # its softmax is one of fp32
    asked = torch.randn(5, *found.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad(output, shift, asked, is_grads_batched=True)[0] for output in (found, expected)]
    assert gradients[0].shape == (5, 2, 36)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
