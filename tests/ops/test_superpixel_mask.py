"""Column masks against loops over patches, superpixels and clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.ops import kmeans as module
from pipelines.ops.kmeans import kmeans, one_hot
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
    members = one_hot(torch.from_numpy(cluster), 4)  # the last cluster is empty
    assert cluster_gate(cam, membership, members, 0.3).tolist() == [[value > 0.3 for value in row] for row in expected]


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
    assert colour_mask(cam, membership, one_hot(torch.from_numpy(cluster), 4), high, share).tolist() == expected


@pytest.mark.parametrize("mask", ["gate", "cluster", "colour", "token"])
@pytest.mark.parametrize("classes", [0, 1])
def test_no_class_and_silent_class(mask, classes):
    _, membership = case(0)
    cam, members = torch.zeros(classes, membership.shape[1]), one_hot(torch.arange(6) % 2, 2)
    found = {
        "gate": lambda: superpixel_gate(cam, membership, 0.2),
        "cluster": lambda: cluster_gate(cam, membership, members, 0.2),
        "colour": lambda: colour_mask(cam, membership, members, 0.3, 0.1),
        "token": lambda: token_gate(cam, 0.2),
    }[mask]()
    assert found.shape == cam.shape
    assert not found.any()


def slow_kmeans(vectors: np.ndarray, clusters: int) -> list[int]:
    """Centres one by one, each the vector that lowers the inertia most; then Lloyd's rounds."""
    distance = ((vectors[:, None] - vectors[None]) ** 2).sum(-1)
    centres: list[int] = []
    for _ in range(clusters):
        inertia = [sum(min(row[[*centres, new]]) for row in distance) for new in range(len(vectors))]
        centres.append(int(np.argmin(inertia)))
    means, found = vectors[centres], []
    for _ in range(module.ROUNDS):
        found = [int(np.argmin([((v - mean) ** 2).sum() for mean in means])) for v in vectors]
        own = [[v for v, c in zip(vectors, found, strict=True) if c == k] for k in range(clusters)]
        means = [np.mean(its, axis=0) if its else mean for its, mean in zip(own, means, strict=True)]
    return found


@pytest.mark.parametrize("offset", [0.0, 60.0])  # Lab colours lie far from 0
def test_clusters_of_a_batch_are_those_of_each_image(offset):
    """Images of 30, 17 and 3 vectors, padded with what must not count, for 5 clusters."""
    generator = torch.Generator().manual_seed(0)
    counts = [30, 17, 3]
    valid = torch.arange(30) < torch.tensor(counts).unsqueeze(1)  # (3, 30)
    batch = (offset + torch.randn(3, 30, 4, generator=generator)).masked_fill(~valid.unsqueeze(2), 1e4)
    found = kmeans(batch, 5, valid)
    assert found.dtype == torch.int64
    for vectors, clusters, count in zip(batch, found, counts, strict=True):
        alone = kmeans(vectors[:count], 5)
        assert clusters[:count].tolist() == alone.tolist() == slow_kmeans(vectors[:count].double().numpy(), min(5, count))


def test_of_very_many_vectors_some_may_be_first_centres(monkeypatch):
    """Groups that lie apart are found from a few candidates too, whatever image is beside in the batch."""
    monkeypatch.setattr(module, "CANDIDATES", 12)
    centres = torch.tensor([[20.0, 0, 0], [80, 40, 0], [50, -40, 40]])
    kind = torch.arange(100) % 3
    vectors = centres[kind] + torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    valid = torch.arange(100) < torch.tensor([[100], [61]])
    for found, count in zip(kmeans(torch.stack([vectors, vectors]), 3, valid), (100, 61), strict=True):
        pairs = {(int(a), int(b)) for a, b in zip(kind[:count], found[:count], strict=True)}
        assert len(pairs) == 3


@pytest.mark.parametrize(("distinct", "clusters", "expected"), [(1, 5, 1), (3, 5, 3), (8, 5, 5)])
def test_fewer_distinct_vectors_make_fewer_clusters(distinct, clusters, expected):
    vectors = torch.arange(distinct).repeat_interleave(4).unsqueeze(1) * torch.tensor([1.0, 0.3, 77.7])
    assert set(kmeans(vectors, clusters).tolist()) == set(range(expected))


def test_features_are_means_of_centred_unit_tokens():
    _, membership = case(0)
    tokens = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)) + 5
    centred = tokens.numpy() - tokens.numpy().mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    weights = membership.numpy()
    expected = [(row[:, None] * unit).sum(0) / row.sum() for row in weights]
    np.testing.assert_allclose(superpixel_features(tokens, membership), expected, atol=1e-5)
