from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.ops.box_mask import box_mask


def _twin(cam: Tensor, grid: tuple[int, int], threshold: float) -> Tensor:
    """Flood fill with eight neighbours, then one box a region."""
    height, width = grid
    out = torch.zeros(len(cam), height, width, dtype=torch.bool)
    for k, one in enumerate(cam):
        levels = [[int(one[y * width + x] * 255) for x in range(width)] for y in range(height)]
        limit = int(threshold * max(max(row) for row in levels))
        todo = {(y, x) for y in range(height) for x in range(width) if levels[y][x] > limit}
        while todo:
            stack, region = [todo.pop()], []
            while stack:
                y, x = stack.pop()
                region.append((y, x))
                near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
                todo -= near
                stack += near
            rows, columns = [p[0] for p in region], [p[1] for p in region]
            for y in range(min(rows), max(rows) + 1):
                for x in range(min(columns), max(columns) + 1):
                    if y < height - 1 and x < width - 1:
                        out[k, y, x] = True
    return out.flatten(1)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 7), st.integers(1, 7), st.integers(0, 2), st.integers(0, 10_000),
    st.sampled_from([0.0, 0.4, 0.7, 0.95, 1.0]),
)  # fmt: skip
def test_same_as_flood_fill(height: int, width: int, count: int, seed: int, threshold: float) -> None:
    cam = torch.rand(count, height * width, generator=torch.Generator().manual_seed(seed)) ** 3
    actual = box_mask(cam, (height, width), threshold)
    assert actual.dtype == torch.bool
    assert torch.equal(actual, _twin(cam, (height, width), threshold))


def test_levels_are_whole_grey_values_and_the_limit_is_exclusive() -> None:
    cam = torch.tensor([[102.9 / 255, 103.0 / 255, 1.0, 0.0] + 4 * [0.0]])  # limit int(0.4 * 255) = 102
    assert box_mask(cam, (2, 4), 0.4)[:, :4].int().tolist() == [[0, 1, 1, 0]]


def test_gradient_and_argument_are_left_alone() -> None:
    cam = torch.full((1, 4), 0.5, requires_grad=True)
    before = cam.detach().clone()
    box_mask(cam, (2, 2), 0.4)
    assert np.array_equal(cam.detach(), before)
