from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.ops.superpixels import token_membership


def _twin(ids: NDArray[np.uint16], grid: tuple[int, int]) -> NDArray[np.float64]:
    (height, width), (h, w) = ids.shape, grid
    out = np.zeros((int(ids.max()) + 1, h * w))
    for y in range(height):
        for x in range(width):
            out[ids[y, x], (y * h // height) * w + x * w // width] += 1
    for n in range(h * w):
        if not out[:, n].any():
            y, x = int((n // w + 0.5) * height / h), int((n % w + 0.5) * width / w)
            out[ids[y, x], n] = 1
    return out / out.sum(axis=0)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_same_as_one_pixel_at_a_time(height: int, width: int, h: int, w: int, count: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, count, (height, width)).astype(np.uint16)
    actual = token_membership(ids, (h, w))
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual, _twin(ids, (h, w)), rtol=1e-6)
    np.testing.assert_allclose(actual.sum(0), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1), (3, 2)])
def test_photo_smaller_than_its_grid(shape: tuple[int, int]) -> None:
    ids = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape)
    np.testing.assert_allclose(token_membership(ids, (5, 4)).sum(0), 1, rtol=1e-6)


def test_more_ids_than_sixteen_bits_of_joint_bins() -> None:
    ids = np.arange(300 * 4, dtype=np.uint16).reshape(30, 40)
    membership = token_membership(ids, (10, 10))  # 1200 superpixels x 100 tokens: more bins than uint16 counts
    assert membership.shape == (1200, 100)
    assert (membership > 0).sum() == 1200
