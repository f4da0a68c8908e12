"""Prototypes and their measures against loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from pipelines.ops.prototypes import class_means, kmeans_prototypes, purity, spread

EMBED = 5


def drawn(samples: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(samples, EMBED, generator=torch.Generator().manual_seed(seed)), dim=1)


def slow_means(features: Tensor, classes: list[int], count: int) -> dict[int, np.ndarray]:
    """Direction of the mean, of classes that have samples."""
    means = {}
    for index in range(count):
        own = [row.double().numpy() for row, its in zip(features, classes, strict=True) if its == index]
        if own:
            mean = sum(own) / len(own)
            means[index] = mean / np.linalg.norm(mean)
    return means


def slow_spread(features: Tensor, classes: list[int], count: int) -> tuple[float, float | None]:
    means = slow_means(features, classes, count)
    within = [1 - float(row.double().numpy() @ means[its]) for row, its in zip(features, classes, strict=True)]
    between = [1 - float(means[a] @ means[b]) for a in means for b in means if a != b]
    return float(np.mean(within)) if within else float("nan"), float(np.mean(between)) if between else None


CLASSES = [
    pytest.param([0, 1, 2, 0, 1, 2, 2], 3, id="all"),
    pytest.param([3, 1, 1, 3, 3], 5, id="some without samples"),
    pytest.param([2, 2, 2], 3, id="one"),
    pytest.param([0], 1, id="one sample"),
    pytest.param([], 3, id="none"),
]


@pytest.mark.parametrize(("classes", "count"), CLASSES)
def test_class_means(classes, count):
    features = drawn(len(classes))
    means, present = class_means(features, torch.tensor(classes, dtype=torch.int64), count)
    expected = slow_means(features, classes, count)
    assert means.shape == (count, EMBED)
    assert present.dtype == torch.bool
    assert present.tolist() == [index in expected for index in range(count)]
    for index, row in enumerate(means):
        np.testing.assert_allclose(row.numpy(), expected.get(index, np.zeros(EMBED)), atol=1e-6)


@pytest.mark.parametrize(("classes", "count"), CLASSES)
def test_spread(classes, count):
    features = drawn(len(classes), seed=1)
    found = spread(features, torch.tensor(classes, dtype=torch.int64), count)
    assert found == pytest.approx(slow_spread(features, classes, count), abs=1e-6, nan_ok=True)


def test_kmeans_every_sample_is_nearest_to_its_own_centre():
    features = drawn(40, seed=2)
    found = kmeans_prototypes(features, 4)
    assert (found.prototypes.dtype, found.index.dtype) == (torch.float32, torch.int64)
    assert sorted(set(found.index.tolist())) == [0, 1, 2, 3]
    centres = [features[found.index == cluster].mean(dim=0) for cluster in range(4)]  # before they are scaled
    for row, cluster in zip(features, found.index.tolist(), strict=True):
        assert min(range(4), key=lambda other: float((row - centres[other]).norm())) == cluster
    np.testing.assert_allclose(found.prototypes.numpy(), F.normalize(torch.stack(centres), dim=1).numpy(), atol=1e-5)


def test_kmeans_is_as_good_as_the_best_of_four_random_starts():
    """Of scikit-learn, on samples of eight directions that overlap."""
    kind, noise = torch.arange(300) % 8, torch.Generator().manual_seed(3)
    features = F.normalize(2 * drawn(8)[kind] + torch.randn(300, EMBED, generator=noise), dim=1)
    best = KMeans(8, n_init=4, random_state=0).fit(features.numpy()).inertia_
    found = kmeans_prototypes(features, 8).index
    inertia = sum(float((own - own.mean(0)).square().sum()) for own in (features[found == k] for k in range(8)))
    assert inertia < 1.05 * best


@pytest.mark.parametrize(("distinct", "wanted", "expected"), [(1, 1, 1), (1, 4, 1), (3, 5, 3), (3, 3, 3), (5, 2, 2)])
def test_kmeans_of_duplicates_makes_fewer_clusters(distinct, wanted, expected):
    features = torch.eye(EMBED)[torch.arange(3 * distinct) % distinct]
    found = kmeans_prototypes(features, wanted)
    assert found.prototypes.shape == (expected, EMBED)
    assert set(found.index.tolist()) == set(range(expected))
    np.testing.assert_allclose(found.prototypes.norm(dim=1).numpy(), 1, atol=1e-6)
    if wanted >= distinct:
        torch.testing.assert_close(found.prototypes[found.index], features)


def test_kmeans_takes_features_that_carry_gradients():
    features = drawn(6).requires_grad_()
    assert not kmeans_prototypes(features, 2).prototypes.requires_grad


def slow_purity(cluster: list[int], classes: list[int]) -> float:
    hits = 0
    for own in set(cluster):
        hits += Counter(c for k, c in zip(cluster, classes, strict=True) if k == own).most_common(1)[0][1]
    return hits / len(classes)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=40))
def test_purity(pairs):
    cluster, classes = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    as_tensor = [torch.tensor(values, dtype=torch.int64) for values in (cluster, classes)]
    assert purity(*as_tensor) == pytest.approx(slow_purity(cluster, classes) if pairs else 1)
