"""The filter against loops over images, layers and pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipelines.ops.attention_filter import Difference, decoder_affinity, filter_attention


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept_layers(attention: Tensor, affinity: Tensor, difference: Difference, valid: list[bool]) -> list[int]:
    scores = []
    for layer in attention:
        score = 0.0
        for i in range(len(valid)):
            for j in range(len(valid)):
                if valid[i] and valid[j]:
                    away = (affinity[i, j] - layer[i, j]).item()
                    score += abs(away) if difference == "absolute" else away
        scores.append(score)
    return [index for index, score in enumerate(scores) if score <= sum(scores) / len(scores)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("difference", ["signed", "absolute"])
@pytest.mark.parametrize("seed", range(4))
def test_same_as_loops(difference: Difference, padded: bool, seed: int) -> None:
    attention, affinity = draw(5, 3, 6, 6, seed=seed), draw(3, 6, 6, seed=seed + 100)
    photo = draw(3, 6, seed=seed + 200) > 0.4
    valid = photo if padded else torch.ones(3, 6, dtype=torch.bool)
    actual = filter_attention(attention, affinity, difference, photo if padded else None)
    for image in range(3):
        kept = kept_layers(attention[:, image], affinity[image], difference, valid[image].tolist())
        assert 0 < len(kept) < 5
        mean = sum(attention[layer, image] for layer in kept) / len(kept)
        torch.testing.assert_close(actual[image], mean * affinity[image])


@pytest.mark.parametrize("difference", ["signed", "absolute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_layers_are_all_kept(difference: Difference, dtype: torch.dtype) -> None:
    one = draw(2, 30, 30).to(dtype)
    attention = one.repeat(7, 1, 1, 1)
    affinity = draw(2, 30, 30, seed=1).float()
    torch.testing.assert_close(filter_attention(attention, affinity, difference), one.float() * affinity)
    nothing = torch.zeros(2, 30, dtype=torch.bool)
    torch.testing.assert_close(filter_attention(attention, affinity, difference, nothing), one.float() * affinity)


def test_half_precision_scores_as_finely_as_double() -> None:
    attention, affinity = draw(8, 4, 30, 30).bfloat16(), draw(4, 30, 30, seed=1)
    assert torch.equal(filter_attention(attention, affinity), filter_attention(attention.double(), affinity))


def test_decoder_affinity_same_as_loops() -> None:
    features = draw(2, 3, 2, 4) - 0.5
    actual = decoder_affinity(features)
    assert actual.shape == (2, 8, 8)
    for image in range(2):
        for i in range(8):
            for j in range(8):
                inner = sum((features[image, e, i // 4, i % 4] * features[image, e, j // 4, j % 4]).item() for e in range(3))
                assert actual[image, i, j].item() == pytest.approx(1 / (1 + math.exp(-inner)))


def test_decoder_affinity_is_full_precision_under_autocast() -> None:
    features = draw(1, 16, 3, 3).float() - 0.5
    expected = decoder_affinity(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(decoder_affinity(features), expected)
    assert decoder_affinity(features.bfloat16()).dtype == torch.float32
    assert torch.autograd.gradcheck(decoder_affinity, (features.double().requires_grad_(),))
