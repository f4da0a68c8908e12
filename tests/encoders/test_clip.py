from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.open_clip_vit import OpenClipViT
from pipelines.encoders.weights import LoadedClip
from pipelines.ops.label_map import resize_maps

CPU = torch.device("cpu")


def _images(batch: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(5))


@torch.inference_mode()
def _walk(clip: LoadedClip, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """open_clip's own modules: input of the last block, and every block's attention from nn.MultiheadAttention."""
    tower = copy.deepcopy(clip.model.visual).eval()
    grid = (images.shape[2] // 8, images.shape[3] // 8)
    table = tower.positional_embedding.detach()
    patches = table[1:].T.reshape(-1, 4, 4).numpy()  # (D, 4, 4)
    resized = torch.from_numpy(resize_maps(patches, grid)).flatten(1).T  # (h * w, D), Pillow's bilinear
    tower.positional_embedding = torch.nn.Parameter(torch.cat([table[:1], resized]).half().float())
    x, attentions = tower._embeds(images), []
    for block in tower.transformer.resblocks:
        before, normed = x, block.ln_1(x)
        attentions.append(block.attn(normed, normed, normed, need_weights=True, average_attn_weights=True)[1])
        x = block(x)
    return before, attentions


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 56), (64, 32)])
@pytest.mark.parametrize("blocks", [(), (0,), (2,), (1, 2), (0, 1, 2)])
def test_same_as_open_clip(tiny_clip: LoadedClip, height: int, width: int, blocks: tuple[int, ...]) -> None:
    images = _images(2, height, width)
    tokens, attentions = _walk(tiny_clip, images)
    found = ClipEncoder(tiny_clip, CPU).encode(images, blocks)
    grid = (height // 8, width // 8)
    assert found.grid == grid
    assert found.tokens_cls.shape == (2, grid[0] * grid[1] + 1, 32)
    # Two bilinear filters may round to different halves: one unit of fp16 away from the native grid.
    tolerance = 1e-5 if grid == (4, 4) else 1e-3
    torch.testing.assert_close(found.tokens_cls, tokens, rtol=tolerance, atol=tolerance)
    if not blocks:
        assert found.attention is None
        return
    assert found.attention is not None
    expected = torch.stack([attentions[i] for i in blocks]).mean(0)[:, 1:, 1:]
    torch.testing.assert_close(found.attention, expected, rtol=tolerance, atol=tolerance)
    assert (found.attention.sum(-1) < 1).all()  # the share of CLS is missing


@torch.inference_mode()
def test_positions_are_rounded_to_half_on_purpose(tiny_clip: LoadedClip) -> None:
    table = tiny_clip.model.visual.positional_embedding.detach().clone()
    positions = OpenClipViT(tiny_clip.model.visual).position_embedding((4, 4))[0]
    assert torch.equal(positions, table.half().float())
    assert not torch.equal(positions, table)


@torch.inference_mode()
def test_cls_position_is_not_resized(tiny_clip: LoadedClip) -> None:
    tower = OpenClipViT(tiny_clip.model.visual)
    assert torch.equal(tower.position_embedding((3, 9))[0, 0], tower.position_embedding((4, 4))[0, 0])
    assert tower.position_embedding((3, 9)).shape == (1, 28, 32)


def test_an_image_does_not_see_its_batch(tiny_clip: LoadedClip) -> None:
    encoder, images = ClipEncoder(tiny_clip, CPU), _images(3, 24, 40)
    together = encoder.encode(images, (0, 2))
    for i in range(3):
        alone = encoder.encode(images[i : i + 1], (0, 2))
        torch.testing.assert_close(alone.tokens_cls[0], together.tokens_cls[i], rtol=1e-5, atol=1e-5)
        assert alone.attention is not None
        assert together.attention is not None
        torch.testing.assert_close(alone.attention[0], together.attention[i], rtol=1e-5, atol=1e-6)


def test_bf16_is_near_and_the_last_block_stays_exact(tiny_clip: LoadedClip) -> None:
    exact = ClipEncoder(LoadedClip(copy.deepcopy(tiny_clip.model), tiny_clip.weights, True), CPU).encode(_images(), (0, 1, 2))
    encoder = ClipEncoder(tiny_clip, CPU, torch.bfloat16)
    found = encoder.encode(_images(), (0, 1, 2), token_blocks=3)
    assert found.block_tokens is not None
    assert found.block_tokens.dtype == torch.bfloat16
    assert found.tokens_cls.dtype == torch.float32
    assert found.attention is not None
    assert exact.attention is not None
    assert found.attention.dtype == torch.float32
    assert (found.tokens_cls - exact.tokens_cls).norm() < 0.02 * exact.tokens_cls.norm()
    torch.testing.assert_close(found.attention, exact.attention, rtol=0.05, atol=2e-3)
    assert {p.dtype for p in encoder.blocks[-1].parameters()} == {torch.float32}
    assert {p.dtype for block in encoder.blocks[:-1] for p in block.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("blocks", [(0, 99), [0, 0], (-1, 0)])
def test_blocks_that_are_not_there_do_not_dilute_the_mean(tiny_clip: LoadedClip, blocks: tuple[int, ...]) -> None:
    encoder, images = ClipEncoder(tiny_clip, CPU), _images()
    try:
        found = encoder.encode(images, blocks).attention
    except (ValueError, IndexError):
        return  # refusing is as good
    expected = encoder.encode(images, sorted({b % 3 for b in blocks if b < 3})).attention
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("each", [(0,), (2,), (1, 2), (2, 0), (0, 1, 2)])
def test_attention_kept_apart_is_that_of_single_blocks(tiny_clip: LoadedClip, each: tuple[int, ...]) -> None:
    encoder, images = ClipEncoder(tiny_clip, CPU), _images(2, 24, 40)
    found = encoder.encode(images, each_block=each)
    assert found.attention is None
    assert found.block_attention is not None
    assert found.block_attention.shape == (len(each), 2, 15, 15)
    for attention, block in zip(found.block_attention, sorted(each), strict=True):  # first block first
        alone = encoder.encode(images, (block,)).attention
        assert alone is not None
        assert torch.equal(attention, alone)
    together = encoder.encode(images, each).attention
    assert together is not None
    torch.testing.assert_close(found.block_attention.mean(dim=0), together)


def test_asking_for_more_changes_nothing_else(tiny_clip: LoadedClip) -> None:
    encoder, images = ClipEncoder(tiny_clip, CPU), _images(2, 24, 40)
    plain = encoder.encode(images, (1, 2))
    assert plain.block_tokens is None
    assert plain.block_attention is None
    more = encoder.encode(images, (1, 2), token_blocks=3, each_block=(0, 1, 2))
    assert plain.attention is not None
    assert more.attention is not None
    assert torch.equal(more.attention, plain.attention)
    apart = encoder.encode(images, each_block=(0, 1, 2)).block_attention
    assert more.block_attention is not None
    assert apart is not None
    assert torch.equal(more.block_attention, apart)  # the sum is not taken in place
    torch.testing.assert_close(more.tokens_cls, plain.tokens_cls, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [-1, 4, 99])
def test_token_blocks_that_are_not_there(tiny_clip: LoadedClip, count: int) -> None:
    with pytest.raises(ValueError, match=rf"token_blocks {count}: expected 0 to 3"):
        ClipEncoder(tiny_clip, CPU).encode(_images(), token_blocks=count)


@pytest.mark.parametrize("each", [(3,), (-1,), (0, 7)])
def test_attention_apart_of_blocks_that_are_not_there(tiny_clip: LoadedClip, each: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected numbers from 0 to 2"):
        ClipEncoder(tiny_clip, CPU).encode(_images(), each_block=each)
