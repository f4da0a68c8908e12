"""Column masks against loops over patches, superpixels and clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.ops.kmeans import kmeans
from pipelines.ops.superpixel_mask import (
    cluster_gate,
    colour_mask,
    superpixel_features,
    superpixel_gate,
    token_gate,
)

SEEDS = range(5)


def case(seed: int, classes: int = 3, superpixels: int = 6, tokens: int = 20) -> tuple[Tensor, Tensor]:
    """CAM in [0, 1] and a membership whose columns sum to 1, most tokens in one or two superpixels."""
    generator = torch.Generator().manual_seed(seed)
    membership = torch.rand(superpixels, tokens, generator=generator) ** 6
    membership[torch.arange(tokens) % superpixels, torch.arange(tokens)] += 0.5
    return torch.rand(classes, tokens, generator=generator) ** 2, membership / membership.sum(0)


def slow_means(cam: Tensor, membership: Tensor) -> list[list[float]]:
    """Mean activation of each superpixel, weighted by its share of each token."""
    return [
        [
            sum(float(share) * float(value) for share, value in zip(shares, row, strict=True)) / float(shares.sum())
            for shares in membership
        ]
        for row in cam
    ]


def clear_of(values: list[list[float]], threshold: float) -> bool:
    """No value so near the threshold that rounding decides."""
    return all(abs(value - threshold) > 1e-5 for row in values for value in row)


def spread(means: list[list[float]], membership: Tensor) -> list[list[float]]:
    """Back to tokens."""
    return [
        [sum(row[s] * float(membership[s, n]) for s in range(len(membership))) for n in range(membership.shape[1])]
        for row in means
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.35, 0.5])
def test_superpixel_gate(seed, threshold):
    cam, membership = case(seed)
    expected = spread(slow_means(cam, membership), membership)
    assert clear_of(expected, threshold)
    found = superpixel_gate(cam, membership, threshold)
    assert found.dtype == torch.bool
    assert found.tolist() == [[value > threshold for value in row] for row in expected]


@pytest.mark.parametrize("seed", SEEDS)
def test_gate_with_one_token_a_superpixel_is_the_token_gate(seed):
    cam, _ = case(seed)
    found = superpixel_gate(cam, torch.eye(cam.shape[1]), 0.3)
    assert torch.equal(found, token_gate(cam, 0.3))
    assert token_gate(cam, 0.3).tolist() == [[float(v) > 0.3 for v in row] for row in cam]


def test_gate_treats_tokens_of_one_superpixel_alike():
    cam = torch.tensor([[1.0, 0.0, 0.1, 0.1]])
    membership = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    assert superpixel_gate(cam, membership, 0.3).tolist() == [[True, True, False, False]]
    assert superpixel_gate(cam, membership, 0.5).tolist() == [[False, False, False, False]]  # strictly above


@pytest.mark.parametrize("seed", SEEDS)
def test_cluster_gate(seed):
    cam, membership = case(seed)
    cluster = np.array([0, 1, 0, 2, 1, 0])
    means = slow_means(cam, membership)
    mixed = []
    for row in means:
        of_cluster = {}
        for c in set(cluster.tolist()):
            inside = [s for s in range(len(cluster)) if cluster[s] == c]
            area = [float(membership[s].sum()) for s in inside]
            of_cluster[c] = sum(a * row[s] for a, s in zip(area, inside, strict=True)) / sum(area)
        mixed.append([(row[s] + of_cluster[int(cluster[s])]) / 2 for s in range(len(cluster))])
    expected = spread(mixed, membership)
    assert clear_of(expected, 0.3)
    assert cluster_gate(cam, membership, cluster, 0.3).tolist() == [[value > 0.3 for value in row] for row in expected]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("high", "share"), [(0.3, 0.03), (0.5, 0.2), (0.0, 0.0), (0.9, 0.5)])
def test_colour_mask(seed, high, share):
    cam, membership = case(seed)
    cluster = np.array([0, 1, 0, 2, 1, 0])
    expected = []
    for row in cam.tolist():
        target = []
        for c in range(3):
            held = sum(
                value * float(membership[s, n])
                for n, value in enumerate(row)
                for s in range(6)
                if value > high and cluster[s] == c
            )
            target.append(held / sum(row) > share)
        expected.append([sum(float(membership[s, n]) for s in range(6) if target[cluster[s]]) > 0.5 for n in range(len(row))])
    assert colour_mask(cam, membership, cluster, high, share).tolist() == expected


@pytest.mark.parametrize("mask", ["gate", "cluster", "colour", "token"])
@pytest.mark.parametrize("classes", [0, 1])
def test_no_class_and_silent_class(mask, classes):
    _, membership = case(0)
    cam, cluster = torch.zeros(classes, membership.shape[1]), np.arange(6) % 2
    found = {
        "gate": lambda: superpixel_gate(cam, membership, 0.2),
        "cluster": lambda: cluster_gate(cam, membership, cluster, 0.2),
        "colour": lambda: colour_mask(cam, membership, cluster, 0.3, 0.1),
        "token": lambda: token_gate(cam, 0.2),
    }[mask]()
    assert found.shape == cam.shape
    assert not found.any()


def test_clusters_part_colours_that_lie_apart():
    rng = np.random.default_rng(0)
    centres = np.array([[20.0, 0, 0], [80, 40, 0], [50, -40, 40]])
    kind = rng.integers(0, 3, 60)
    found = kmeans(centres[kind] + rng.normal(0, 1, (60, 3)), 3)
    assert found.dtype == np.int64
    assert len({(int(a), int(b)) for a, b in zip(kind, found, strict=True)}) == 3


@pytest.mark.parametrize(("distinct", "clusters", "expected"), [(1, 5, 1), (3, 5, 3), (8, 5, 5)])
def test_fewer_distinct_vectors_make_fewer_clusters(distinct, clusters, expected):
    vectors = np.repeat(np.arange(distinct, dtype=float), 4)[:, None] * np.ones((1, 3))
    assert set(kmeans(vectors, clusters).tolist()) == set(range(expected))


def test_clusters_are_the_same_every_time():
    vectors = np.random.default_rng(1).random((50, 3))
    assert np.array_equal(kmeans(vectors, 5), kmeans(vectors.copy(), 5))


def test_features_are_means_of_centred_unit_tokens():
    _, membership = case(0)
    tokens = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)) + 5
    centred = tokens.numpy() - tokens.numpy().mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    weights = membership.numpy()
    expected = [(row[:, None] * unit).sum(0) / row.sum() for row in weights]
    np.testing.assert_allclose(superpixel_features(tokens, membership), expected, atol=1e-5)
