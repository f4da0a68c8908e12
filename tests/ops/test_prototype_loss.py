"""The contrasts against loops over samples, patches and prototypes, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.prototype_loss import background_preference, prototype_contrast, token_contrast, weighted_pool

EMBED, CLASSES, WORDS = 6, 4, 3


def rows(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, EMBED, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=-1)


def share(feature: Tensor, prototypes: Tensor, wanted: list[int], temperature: float) -> Tensor:
    """Softmax's share of ``wanted``, by its definition."""
    odds = [(torch.dot(feature, row) / temperature).exp() for row in prototypes]
    return sum(odds[index] for index in wanted) / sum(odds)


def agree(found: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    assert found.shape == ()
    torch.testing.assert_close(found, expected)
    pairs = zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True)
    for ours, theirs in pairs:
        assert theirs.abs().max() > 1e-6  # else the comparison says nothing
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("positive", [[0, 3, 3, 1], [2], [5, 5]])
def test_prototype_contrast(positive, temperature):
    features, prototypes = rows(len(positive)).requires_grad_(), rows(CLASSES + WORDS, seed=1).requires_grad_()
    scale = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    terms = [-share(f, prototypes, [p], scale).log() for f, p in zip(features, positive, strict=True)]
    found = prototype_contrast(features, torch.tensor(positive), prototypes, scale)
    agree(found, sum(terms) / len(terms), features, prototypes, scale)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("words", [1, WORDS])
def test_background_preference(words, temperature):
    features, prototypes = rows(5).requires_grad_(), rows(CLASSES + words, seed=1).requires_grad_()
    wanted = list(range(CLASSES, CLASSES + words))
    terms = [-share(row, prototypes, wanted, temperature).log() for row in features]
    agree(background_preference(features, prototypes, CLASSES, temperature), sum(terms) / len(terms), features, prototypes)


@pytest.mark.parametrize(("samples", "words"), [(0, WORDS), (4, 0), (0, 0)])
def test_background_preference_of_nothing(samples, words):
    features = rows(samples).requires_grad_()
    found = background_preference(features, rows(CLASSES + words), CLASSES, 0.1)
    assert found.item() == 0
    (gradient,) = torch.autograd.grad(found, features)
    assert not gradient.any()


def test_prototype_contrast_of_nothing():
    features = rows(0).requires_grad_()
    found = prototype_contrast(features, torch.zeros(0, dtype=torch.int64), rows(3), 0.1)
    assert found.item() == 0
    found.backward()  # it is part of a sum that is differentiated


def slow_pool(features: Tensor, weights: Tensor) -> list[list[Tensor]]:
    pooled = []
    for tokens, maps in zip(features, weights, strict=True):
        sums = [sum(weight * token for weight, token in zip(row, tokens, strict=True)) for row in maps]
        pooled.append([total / total.norm() if total.any() else total for total in sums])
    return pooled


def test_weighted_pool():
    features = torch.randn(2, 5, EMBED, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1))
    weights[0, 1], weights[1, 2, :4] = 0, 0
    found = weighted_pool(features, weights)
    expected = torch.stack([torch.stack(row) for row in slow_pool(features, weights)])
    torch.testing.assert_close(found, expected)
    assert not found[0, 1].any()
    torch.testing.assert_close(found[1, 2], F.normalize(features[1, 4], dim=0))
    torch.testing.assert_close(weighted_pool(features, 7 * weights), found)


def test_weighted_pool_where_all_weights_are_zero_has_a_gradient_that_is_a_number():
    features = torch.randn(1, 3, EMBED, requires_grad=True)
    (gradient,) = torch.autograd.grad(weighted_pool(features, torch.zeros(1, 1, 3)).sum(), features)
    assert not gradient.any()


def slow_token_contrast(
    features: Tensor, weights: Tensor, classes: list[list[int]], outside: Tensor, prototypes: Tensor, temperature: float
) -> Tensor:
    words, total = list(range(CLASSES, len(prototypes))), 0
    for image, tokens in enumerate(features):
        for patch, token in enumerate(tokens):
            for slot, index in enumerate(classes[image]):
                if index >= 0:
                    total = total - weights[image, slot, patch] * share(token, prototypes, [index], temperature).log()
            if words:
                total = total - outside[image, patch] * share(token, prototypes, words, temperature).log()
    return total / (features.shape[0] * features.shape[1])


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("words", [0, 1, WORDS])
@pytest.mark.parametrize("classes", [[[0, 2], [3, -1]], [[1, 3]], [[-1], [2], [0]]], ids=str)
def test_token_contrast(classes, words, temperature):
    images, slots, patches = len(classes), len(classes[0]), 5
    features, prototypes = rows(images, patches).requires_grad_(), rows(CLASSES + words, seed=1).requires_grad_()
    weights = torch.rand(images, slots, patches, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights[torch.tensor(classes) < 0] = 0
    outside = 1 - weights.amax(dim=1)
    found = token_contrast(features, weights, torch.tensor(classes), outside, prototypes, CLASSES, temperature)
    agree(found, slow_token_contrast(features, weights, classes, outside, prototypes, temperature), features, prototypes)


def test_token_contrast_of_images_without_classes_is_the_background_alone():
    features, outside = rows(1, 4), torch.ones(1, 4, dtype=torch.float64)
    prototypes = rows(CLASSES + WORDS, seed=1)
    empty = torch.zeros(1, 0, 4, dtype=torch.float64), torch.zeros(1, 0, dtype=torch.int64)
    found = token_contrast(features, *empty, outside, prototypes, CLASSES, 0.1)
    torch.testing.assert_close(found, background_preference(features[0], prototypes, CLASSES, 0.1))
