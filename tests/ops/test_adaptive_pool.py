from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipelines.ops.adaptive_pool import adaptive_means


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 6), (6, 6)])
@pytest.mark.parametrize("side", [(1, 1), (2, 9), (6, 7), (13, 12), (40, 31)])
def test_it_is_torch(size: tuple[int, int], side: tuple[int, int]) -> None:
    """Also where there are more bins than pixels."""
    maps = torch.randn(2, 3, *side, dtype=torch.float64)  # (B, C, H, W)
    torch.testing.assert_close(adaptive_means(maps, size), F.adaptive_avg_pool2d(maps, size))
