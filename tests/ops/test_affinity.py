from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.ops.affinity import fuse_attention, normalise_rows, propagate, sinkhorn


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_normalise_rows() -> None:
    matrix = _random(2, 4, 4)
    matrix[0, 1] = 0
    rows = normalise_rows(matrix)
    torch.testing.assert_close(rows.sum(-1), torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 1]]))
    torch.testing.assert_close(rows[1, 3], matrix[1, 3] / matrix[1, 3].sum())


def _naive_sinkhorn(matrix: Tensor, rounds: int) -> Tensor:
    m = matrix.double().numpy().copy()
    for _ in range(rounds):
        for j in range(m.shape[1]):
            m[:, j] /= m[:, j].sum() or 1
        for i in range(m.shape[0]):
            m[i] /= m[i].sum() or 1
    return torch.from_numpy(m).float()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.integers(0, 6), st.integers(0, 1000), st.sets(st.integers(0, 6)), st.sets(st.integers(0, 6)))
def test_sinkhorn_same_as_matrix_loop(size: int, rounds: int, seed: int, rows: set[int], columns: set[int]) -> None:
    matrix = _random(size, size, seed=seed) + 1e-3
    matrix[[i for i in rows if i < size]] = 0
    matrix[:, [j for j in columns if j < size]] = 0
    actual = sinkhorn(matrix, rounds)
    torch.testing.assert_close(actual, _naive_sinkhorn(matrix, rounds), rtol=1e-4, atol=1e-6)
    if rounds:
        torch.testing.assert_close(actual.sum(-1), (matrix.sum(-1) > 0).float())


def test_sinkhorn_of_a_batch() -> None:
    batch = _random(3, 5, 5)
    torch.testing.assert_close(sinkhorn(batch, 3), torch.stack([_naive_sinkhorn(m, 3) for m in batch]))
    torch.testing.assert_close(sinkhorn(batch, 50).sum(-2), torch.ones(3, 5), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_fuse_weighs_normalised_rows(weight: float) -> None:
    clip, dino = 7 * _random(2, 4, 4, seed=1), 0.1 * _random(2, 4, 4, seed=2)
    fused = fuse_attention(clip, dino, weight)
    expected = [
        [
            [(1 - weight) * c / cs.sum() + weight * d / ds.sum() for c, d in zip(cs, ds, strict=True)]
            for cs, ds in zip(a, b, strict=True)
        ]
        for a, b in zip(clip, dino, strict=True)
    ]
    torch.testing.assert_close(fused, torch.tensor(expected))
    torch.testing.assert_close(fused.sum(-1), torch.ones(2, 4))


def test_fuse_one_or_none() -> None:
    one = _random(3, 3)
    assert torch.equal(fuse_attention(one, None, 0.0), one)
    assert torch.equal(fuse_attention(None, one, 1.0), one)
    with pytest.raises(ValueError, match="both are None"):
        fuse_attention(None, None, 0.5)
    with pytest.raises(ValueError, match=r"grids differ: CLIP \(3, 3\), DINO \(4, 4\)"):
        fuse_attention(one, _random(4, 4), 0.5)


@pytest.mark.parametrize("power", [0, 1, 2, 3, 5])
def test_propagate_same_as_matrix_power(power: int) -> None:
    affinity, cam, mask = _random(6, 6), _random(2, 6, seed=1), (_random(2, 6, seed=2) > 0.4).float()
    transition = np.linalg.matrix_power(affinity.double().numpy(), power)
    for mine, boxes, once, never in zip(
        cam, mask, propagate(affinity, cam, mask, power), propagate(affinity, cam, None, power), strict=True
    ):
        columns = boxes.numpy()[None] if power else 1  # (A^p * B): column j is a source
        np.testing.assert_allclose(once, (transition * columns) @ mine.numpy(), rtol=1e-5)
        np.testing.assert_allclose(never, transition @ mine.numpy(), rtol=1e-5)


@pytest.mark.parametrize("power", [1, 2, 4])
def test_masking_every_step_same_as_loop(power: int) -> None:
    affinity, cam, mask = _random(6, 6), _random(2, 6, seed=1), _random(2, 6, seed=2)
    expected = []
    for mine, boxes in zip(cam.double(), mask.double(), strict=True):
        step = affinity.double() * boxes[None]
        for _ in range(power):
            mine = step @ mine
        expected.append(mine)
    actual = propagate(affinity, cam, mask, power, mask_every_step=True)
    torch.testing.assert_close(actual, torch.stack(expected).float())
    assert torch.allclose(actual, propagate(affinity, cam, mask, power)) == (power == 1)


def test_arguments_stay_as_they_were() -> None:
    affinity, cam, mask = _random(4, 4), _random(1, 4), _random(1, 4, seed=3)
    before = [t.clone() for t in (affinity, cam, mask)]
    propagate(affinity, cam, mask, 3, True)
    sinkhorn(affinity, 2)
    fuse_attention(affinity, affinity, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(before, (affinity, cam, mask), strict=True))
    assert propagate(affinity, torch.zeros(0, 4)).shape == (0, 4)
