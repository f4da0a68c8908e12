from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.tower import walk
from pipelines.encoders.weights import resolve_dino

CPU = torch.device("cpu")


@pytest.fixture
def encoder(dino_file: Path) -> DinoEncoder:
    """timm's smallest ViT; test_towers.py holds every form of tower against timm's own forward pass."""
    return DinoEncoder(resolve_dino("test_vit", str(dino_file)), CPU)


def _images(batch: int = 2, height: int = 48, width: int = 80) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("blocks", [(0,), (5,), (0, 1, 5)])
def test_attention_and_patch_tokens_are_those_of_the_tower(encoder: DinoEncoder, blocks: tuple[int, ...]) -> None:
    found, walked = encoder.encode(_images(), blocks), walk(encoder.tower, _images(), blocks)
    assert found.attention.shape == (2, 15, 15)
    assert torch.equal(found.attention, walked.attention)
    assert torch.equal(found.tokens, walked.tokens_cls[:, encoder.tower.prefix :])
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_an_image_does_not_see_its_batch(encoder: DinoEncoder) -> None:
    images = _images(3)
    together = encoder.encode(images, (0, 2))
    for i in range(3):
        alone = encoder.encode(images[i : i + 1], (0, 2))
        torch.testing.assert_close(alone.attention[0], together.attention[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.tokens[0], together.tokens[i], rtol=1e-5, atol=1e-5)


def test_bf16_is_near(dino_file: Path) -> None:
    weights = resolve_dino("test_vit", str(dino_file))
    exact = DinoEncoder(weights, CPU).encode(_images(), (0, 5))
    found = DinoEncoder(weights, CPU, torch.bfloat16).encode(_images(), (0, 5))
    assert found.attention.dtype == found.tokens.dtype == torch.float32
    torch.testing.assert_close(found.attention, exact.attention, rtol=0.05, atol=2e-3)
    assert (found.tokens - exact.tokens).norm() < 0.03 * exact.tokens.norm()


@pytest.mark.parametrize("blocks", [(), (99,)])
def test_no_such_block(encoder: DinoEncoder, blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected at least one block|expected numbers from"):
        encoder.encode(_images(), blocks)


def test_a_block_that_is_not_there_does_not_dilute_the_mean(encoder: DinoEncoder) -> None:
    try:
        found = encoder.encode(_images(), (0, 99))
    except ValueError:
        return  # refusing is as good
    torch.testing.assert_close(found.attention, encoder.encode(_images(), (0,)).attention)
