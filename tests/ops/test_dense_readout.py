"""Dense read-out against loops, and against attention that looks at its own patch only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.ops.dense_readout import smooth_over_superpixels, text_probabilities
from tests.fixtures.towers import LastBlock

WIDTH, EMBED = 12, 7


class Block(nn.Module):
    """A residual block as open_clip's, with weights that are not trivial."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, 3, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.ls_1 = self.ls_2 = nn.Identity()
        self.mlp = nn.Linear(WIDTH, WIDTH)


def value_tokens(tokens_cls: Tensor, last: LastBlock) -> Tensor:
    return last.tail.value_tokens(last.tail.normalise(last.tail.patches(tokens_cls)))


def _probabilities(values: Tensor, last: LastBlock, text: Tensor, targets: int, scale: float) -> Tensor:
    return text_probabilities(F.normalize(last.tail.project(values), dim=-1), text, targets, scale)


@pytest.fixture
def last_block() -> LastBlock:
    torch.manual_seed(0)
    block, ln_post = Block(), nn.LayerNorm(WIDTH)
    for parameter in (*block.parameters(), *ln_post.parameters()):
        nn.init.normal_(parameter, std=0.5)
    return LastBlock(block.requires_grad_(False), ln_post.requires_grad_(False), torch.randn(WIDTH, EMBED))


def test_value_tokens_are_attention_of_each_patch_to_itself(last_block):
    """With every other key masked away, attention's output is the projected value of the patch itself."""
    tokens_cls = torch.randn(2, 6, WIDTH)
    normed = last_block.block.ln_1(tokens_cls)
    alone = torch.full((6, 6), float("-inf")).fill_diagonal_(0.0)
    expected, _ = last_block.block.attn(normed, normed, normed, attn_mask=alone)
    found = value_tokens(tokens_cls, last_block)
    assert found.shape == (2, 5, WIDTH)
    torch.testing.assert_close(found, expected[:, 1:], atol=1e-5, rtol=1e-5)


def slow_smooth(tokens: Tensor, membership: Tensor, share: float) -> np.ndarray:
    x, m = tokens.numpy(), membership.numpy()
    means = [sum(m[s, n] * x[n] for n in range(len(x))) / m[s].sum() for s in range(len(m))]
    return np.stack([(1 - share) * x[n] + share * sum(m[s, n] * means[s] for s in range(len(m))) for n in range(len(x))])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_smoothing(share):
    generator = torch.Generator().manual_seed(1)
    tokens, membership = torch.randn(9, WIDTH, generator=generator), torch.rand(4, 9, generator=generator)
    membership /= membership.sum(0)
    found = smooth_over_superpixels(tokens, membership, share)
    np.testing.assert_allclose(found.numpy(), slow_smooth(tokens, membership, share), atol=1e-5)
    if share == 0:
        assert torch.equal(found, tokens)


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("targets", [0, 1, 3])
def test_probabilities(last_block, scale, targets):
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(8, WIDTH, generator=generator)
    text = torch.nn.functional.normalize(torch.randn(5, EMBED, generator=generator), dim=1)
    found = _probabilities(values, last_block, text, targets, scale)
    assert found.shape == (targets, 8)
    for n, value in enumerate(values):
        feature = (last_block.ln_post(value) @ last_block.projection).double().numpy()
        feature /= np.linalg.norm(feature)
        odds = np.exp([scale * float(feature @ row.double().numpy()) for row in text])
        np.testing.assert_allclose(found[:, n].numpy(), (odds / odds.sum())[:targets], atol=1e-4)
