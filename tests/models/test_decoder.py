"""The decoder: shapes, what its channel factors do, and that its sizes rebuild it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipelines.models.decoder import SegmentationDecoder

BLOCKS, WIDTH, CLASSES, HIDDEN, GRID = 3, 6, 4, 8, (2, 5)


@pytest.fixture
def decoder() -> SegmentationDecoder:
    torch.manual_seed(0)
    return SegmentationDecoder(BLOCKS, WIDTH, CLASSES, HIDDEN, layers=2, heads=2)


def tokens(batch: int = 2, blocks: int = BLOCKS, count: int = 10) -> torch.Tensor:
    return torch.randn(blocks, batch, count, WIDTH, generator=torch.Generator().manual_seed(1))


def test_shapes_and_places_on_a_grid_that_is_not_square(decoder):
    given = tokens()
    logits, features = decoder(given, GRID)
    assert logits.shape == (2, CLASSES + 1, *GRID)
    assert features.shape == (2, HIDDEN, *GRID)
    for image in range(2):
        for place in range(10):
            own = [mlp(block[image, place]) for mlp, block in zip(decoder.mlps, given, strict=True)]
            expected = decoder.fusion(torch.cat(own))
            torch.testing.assert_close(features[image, :, place // 5, place % 5], expected, rtol=1e-5, atol=1e-6)


def test_logits_are_those_of_the_transformer_over_all_tokens_of_a_photo(decoder):
    """Attention and norms written out, layer by layer."""
    decoder.eval()
    given = tokens()
    x = decoder(given, GRID)[1].flatten(2).transpose(1, 2)  # (B, N, E)
    for layer in decoder.transformer:
        normed = layer.norm1(x)
        query, key, value = F.linear(normed, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, dim=-1)
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            weights = (query[..., part] @ key[..., part].transpose(1, 2) / 2).softmax(dim=-1)
            heads.append(weights @ value[..., part])
        x = x + layer.self_attn.out_proj(torch.cat(heads, dim=-1))
        x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
    expected = decoder.classifier(x).transpose(1, 2).reshape(2, CLASSES + 1, *GRID)
    torch.testing.assert_close(decoder(given, GRID)[0], expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_drawn_inside(decoder):
    """Chance is the caller's: training mode gives what evaluation gives."""
    given = tokens()
    first = decoder.train()(given, GRID)[0]
    assert torch.equal(first, decoder(given, GRID)[0])
    torch.testing.assert_close(decoder.eval()(given, GRID)[0], first, rtol=1e-5, atol=1e-6)


def test_a_photo_does_not_see_its_batch(decoder):
    given = tokens(3)
    together = decoder(given, GRID)[0]
    for image in range(3):
        torch.testing.assert_close(decoder(given[:, image : image + 1], GRID)[0][0], together[image], rtol=1e-5, atol=1e-5)


def test_channel_factors_act_behind_the_fusion_and_before_the_transformer(decoder):
    given = tokens()
    plain, features = decoder(given, GRID)
    assert torch.equal(decoder(given, GRID, torch.ones(2, HIDDEN))[0], plain)
    channels = torch.ones(2, HIDDEN)
    channels[1, ::2] = 0
    channels[1, 1::2] = 2
    dropped, same = decoder(given, GRID, channels)
    assert torch.equal(same, features)  # the affinity is of all channels
    assert torch.equal(dropped[0], plain[0])
    assert not torch.allclose(dropped[1], plain[1], atol=1e-3)
    with torch.no_grad():  # the same by scaling the fusion's rows
        decoder.fusion.weight *= channels[1].unsqueeze(1)
        decoder.fusion.bias *= channels[1]
    torch.testing.assert_close(decoder(given, GRID)[0][1], dropped[1], rtol=1e-5, atol=1e-6)


def test_sizes_and_state_rebuild_it(decoder):
    torch.manual_seed(7)
    other = SegmentationDecoder(**decoder.sizes)
    assert other.sizes == decoder.sizes
    assert not torch.equal(other(tokens(), GRID)[0], decoder(tokens(), GRID)[0])
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(other(tokens(), GRID)[0], decoder(tokens(), GRID)[0])


def test_every_parameter_learns(decoder):
    logits, _ = decoder(tokens(), GRID)
    F.cross_entropy(logits, torch.arange(20).view(2, *GRID) % 5).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("blocks", [0, BLOCKS - 1, BLOCKS + 1])
def test_tokens_of_another_number_of_blocks_fail(decoder, blocks):
    with pytest.raises(ValueError, match="zip"):
        decoder(tokens(blocks=blocks), GRID)
