"""The losses against loops over pixels and pairs, in value and in gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipelines.ops.segmentation_loss import affinity_halves, cross_entropy_halves, mean_of_means

LABELS = {
    "mixed": [[[0, 2, 255, 1], [0, 0, 1, 255]], [[1, 1, 0, 0], [255, 2, 2, 0]]],
    "one image empty": [[[255] * 4] * 2, [[0, 1, 1, 2], [0, 0, 255, 1]]],
    "no background": [[[1, 2, 2, 1], [255, 1, 1, 1]]],
    "no foreground": [[[0, 0, 255, 0], [0, 0, 0, 0]]],
    "no class": [[[255] * 4] * 2],
}
PARTIAL = [name for name in LABELS if name != "no class"]


def balanced_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    return mean_of_means(*cross_entropy_halves(logits, labels, ignore_index))


def affinity_loss(affinity: Tensor, labels: Tensor, radius: int = 2, ignore_index: int = 255) -> Tensor:
    sums, counts = affinity_halves(affinity, labels, radius, ignore_index)
    return mean_of_means(sums, counts + 1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def average(terms: list[Tensor], extra: int = 0) -> Tensor:
    return torch.stack(terms).sum() / (len(terms) + extra) if terms else torch.zeros((), dtype=torch.float64)


def naive_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for image in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                label = int(labels[image, y, x])
                if label != ignore_index:
                    odds = logits[image, :, y, x].exp()
                    halves[label > 0].append(-(odds[label] / odds.sum()).log())
    return (average(halves[0]) + average(halves[1])) / 2


def naive_affinity_loss(affinity: Tensor, labels: Tensor, radius: int, ignore_index: int) -> Tensor:
    attracted, repelled = [], []
    _, height, width = labels.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    for image, grid in enumerate(labels.tolist()):
        for i, (y, x) in enumerate(cells):
            for j, (v, u) in enumerate(cells):
                if max(abs(y - v), abs(x - u)) > radius or ignore_index in (grid[y][x], grid[v][u]):
                    continue
                if grid[y][x] == grid[v][u]:
                    attracted.append(1 - affinity[image, i, j])
                else:
                    repelled.append(affinity[image, i, j])
    return (average(attracted, extra=1) + average(repelled, extra=1)) / 2


@pytest.mark.parametrize("ignore_index", [255, 2])
@pytest.mark.parametrize("name", PARTIAL)
def test_cross_entropy_same_as_loops(name: str, ignore_index: int) -> None:
    labels = torch.tensor(LABELS[name])
    if ignore_index == 2:
        labels[labels == 255] = 2
    logits = (4 * draw(len(labels), 3, 2, 4)).requires_grad_()
    found, expected = (f(logits, labels, ignore_index) for f in (balanced_cross_entropy, naive_cross_entropy))
    torch.testing.assert_close(found, expected)
    (ours,), (theirs,) = torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits)
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda free: balanced_cross_entropy(free, labels, ignore_index), (logits,))


@pytest.mark.parametrize("radius", [0, 1, 2, 8])
@pytest.mark.parametrize("name", PARTIAL)
def test_affinity_loss_same_as_loops(name: str, radius: int) -> None:
    labels = torch.tensor(LABELS[name])
    affinity = draw(len(labels), 8, 8).requires_grad_()
    found, expected = (f(affinity, labels, radius, 255) for f in (affinity_loss, naive_affinity_loss))
    torch.testing.assert_close(found, expected)
    (ours,), (theirs,) = torch.autograd.grad(found, affinity), torch.autograd.grad(expected, affinity)
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda free: affinity_loss(free, labels, radius), (affinity,))


@pytest.mark.parametrize("loss", [balanced_cross_entropy, affinity_loss])
def test_nothing_labelled_is_exactly_zero(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    labels = torch.tensor(LABELS["no class"])
    free = draw(1, *((3, 2, 4) if loss is balanced_cross_entropy else (8, 8))).float().requires_grad_()
    found = loss(free, labels)
    assert found.item() == 0
    assert torch.autograd.grad(found, free)[0].count_nonzero() == 0
