"""Class distributions and their divergence against plain loops in fp64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipelines.ops.class_distribution import class_distributions, jensen_shannon, similarity_weights


def entropy(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def distributions(*shape: int) -> torch.Tensor:
    return (4 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))).softmax(dim=-1)


@pytest.mark.parametrize("block", [1, 30, 1 << 18], ids=["single rows", "blocks of rows", "all at once"])
def test_divergence_is_the_written_formula(block):
    p = distributions(2, 13, 5)
    p[1, 3] = torch.tensor([0.0, 1, 0, 0, 0])  # entries of 0 have no logarithm
    found = jensen_shannon(p, block)
    for image in range(2):
        rows = p[image].double().tolist()
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                middle = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
                expected = entropy(middle) - (entropy(one) + entropy(other)) / 2
                assert float(found[image, i, j]) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(found, found.transpose(1, 2))
    assert not found.diagonal(dim1=1, dim2=2).any()


def test_opposites_are_log_two_apart_and_equals_zero():
    p = torch.eye(3)[[0, 1, 1]].unsqueeze(0)
    expected = math.log(2) * torch.tensor([[[0.0, 1, 1], [1, 0, 0], [1, 0, 0]]])
    torch.testing.assert_close(jensen_shannon(p), expected, atol=1e-6, rtol=0)


def test_distributions_are_softmaxes_of_scaled_cosines():
    """Name by name, the patch that resembles it most counts 1 and the one that does least 0; padding is neither."""
    draw = torch.Generator().manual_seed(1)
    features, text = torch.randn(2, 6, 4, generator=draw), F.normalize(torch.randn(3, 4, generator=draw), dim=1)
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found = class_distributions(features, text, 2.5, valid)
    for image, count in enumerate((6, 4)):
        cosine = torch.stack([F.cosine_similarity(features[image, :count], name[None], dim=1) for name in text], dim=1)
        low, high = cosine.min(dim=0).values, cosine.max(dim=0).values
        expected = (2.5 * (cosine - low) / (high - low)).softmax(dim=1)
        torch.testing.assert_close(found[image, :count], expected, atol=1e-5, rtol=0)


def test_temperature_is_in_units_of_each_photos_median():
    divergence = jensen_shannon(distributions(2, 9, 4))
    divergence[1] *= 100  # a photo whose patches are far from each other
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 7:] = False
    found = similarity_weights(divergence, 3.0, valid=valid)
    for image, count in enumerate((9, 7)):
        median = divergence[image, :count, :count].flatten().sort().values[(count * count - 1) // 2]
        torch.testing.assert_close(found[image], torch.exp(-divergence[image] / (3 * median)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(similarity_weights(divergence, 3.0, tau=0.5), torch.exp(-divergence / 0.5))
    assert torch.equal(similarity_weights(torch.zeros(1, 4, 4), 3.0), torch.ones(1, 4, 4))  # one colour: all alike
