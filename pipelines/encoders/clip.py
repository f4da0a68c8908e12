"""The frozen CLIP image tower, opened between its last two blocks.

GradCAM needs the tokens that *enter* the last block, the affinity needs the attention of several blocks. Both come from one
walk over open_clip's own modules: no hooks, no copy of the model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from pipelines.encoders.last_block import LastBlock
from pipelines.encoders.weights import LoadedClip
from pipelines.ops.attention import attention_with_weights


@dataclass(frozen=True)
class ClipTokens:
    """What one pass of the image tower leaves behind.

    Attributes:
        tokens_cls: Tokens that enter the last block, ``(B, N + 1, D)``, fp32, CLS first.
        attention: Mean over the requested blocks of the head-averaged attention between patches,
            ``(B, N, N)``, fp32, or None if none was requested. The CLS row and column are dropped.
        grid: ``(h, w)`` with ``h * w == N``, row-major.
        block_tokens: Output of the first L blocks without CLS, ``(L, B, N, D)``, or None if L is 0.
        block_attention: Attention of each block of ``each_block``, ``(A, B, N, N)``, fp32, or None if there is none.
    """

    tokens_cls: Tensor
    attention: Tensor | None
    grid: tuple[int, int]
    block_tokens: Tensor | None = None
    block_attention: Tensor | None = None


def checked_blocks(wanted: Collection[int], count: int) -> frozenset[int]:
    """The wanted block numbers, each once.

    Raises:
        ValueError: One of them is not in ``range(count)``.
    """
    found = frozenset(wanted)
    if not found <= set(range(count)):
        raise ValueError(f"attention_blocks {sorted(found)}: expected numbers from 0 to {count - 1}")
    return found


class ClipEncoder:
    """A frozen CLIP ViT from open_clip.

    Args:
        clip: A loaded CLIP (see `pipelines.encoders.weights.build_clip`); its image tower is taken over, and changed if
            ``dtype`` is not fp32.
        device: Where to run.
        dtype: Precision of all blocks but the last, which always runs in fp32: a softmax at scale 100 and its
            gradient do not survive half precision.
    """

    def __init__(self, clip: LoadedClip, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.weights = clip.weights
        self.device = device
        self.dtype = dtype
        self.tower = cast("VisionTransformer", clip.model.visual).to(device).eval().requires_grad_(False)
        self.logit_scale: float = clip.model.logit_scale.exp().item()
        self.patch_size: int = self.tower.patch_size[0]
        mean, std = self.tower.image_mean, self.tower.image_std
        self.mean = cast("tuple[float, float, float]", tuple(mean or open_clip.OPENAI_DATASET_MEAN))
        self.std = cast("tuple[float, float, float]", tuple(std or open_clip.OPENAI_DATASET_STD))
        self._positions: dict[tuple[int, int], Tensor] = {}
        if dtype != torch.float32:
            self.tower.conv1.to(dtype)
            self.tower.ln_pre.to(dtype)
            for block in self.blocks[:-1]:
                block.to(dtype)

    @property
    def blocks(self) -> list[ResidualAttentionBlock]:
        """The residual blocks, first to last."""
        return list(self.tower.transformer.resblocks)

    @property
    def last_block(self) -> LastBlock:
        """The part behind `ClipTokens.tokens_cls`, as GradCAM wants it."""
        return LastBlock(
            block=self.blocks[-1], ln_post=cast("nn.LayerNorm", self.tower.ln_post), projection=cast("Tensor", self.tower.proj)
        )

    def position_embedding(self, grid: tuple[int, int]) -> Tensor:
        """Position table for ``grid``: CLS row kept, patch rows resized bilinearly, ``(1, h * w + 1, D)``."""
        if grid not in self._positions:
            table = self.tower.positional_embedding.float()  # (S * S + 1, D)
            side = round((table.shape[0] - 1) ** 0.5)
            patches = table[1:].T.reshape(1, -1, side, side)  # (1, D, S, S)
            resized = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)  # (1, D, h, w)
            # The reference keeps the resized table in half precision; maps differ by up to 1e-2 without this rounding.
            positions = torch.cat([table[:1], resized.flatten(2)[0].T]).half()  # (h * w + 1, D)
            self._positions[grid] = positions.unsqueeze(0).to(self.dtype)
        return self._positions[grid]

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        attention_blocks: Collection[int] = (),
        token_blocks: int = 0,
        each_block: Collection[int] = (),
    ) -> ClipTokens:
        """Run all blocks but the last; the last too if its tokens are asked for.

        Args:
            images: Normalised RGB, ``(B, 3, H, W)`` fp32, both sides multiples of the patch size.
            attention_blocks: Blocks whose attention is averaged; 0 is the first, ``len(blocks) - 1`` the last.
                For the last block only its attention is computed.
            token_blocks: Number of blocks, from the first, whose output is kept.
            each_block: Blocks whose attention is kept apart.

        Returns:
            Tokens, attention and grid.

        Raises:
            ValueError: A block that is not there.
        """
        depth = len(self.blocks)
        attention_blocks, each_block = checked_blocks(attention_blocks, depth), checked_blocks(each_block, depth)
        if not 0 <= token_blocks <= depth:
            raise ValueError(f"token_blocks {token_blocks}: expected 0 to {depth}")
        x = self._embed(images)  # (B, N + 1, D)
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        *most, last = self.blocks
        total: Tensor | None = None
        kept: list[Tensor] = []
        apart: list[Tensor] = []

        def note(index: int, weights: Tensor) -> None:
            nonlocal total
            weights = weights[:, 1:, 1:]  # (B, N, N)
            if index in attention_blocks:
                total = weights.clone() if total is None else total.add_(weights)
            if index in each_block:
                apart.append(weights)

        for index, block in enumerate(most):
            if index in attention_blocks | each_block:
                x, weights = self._block_with_attention(block, x)
                note(index, weights)
            else:
                x = block(x)
            if index < token_blocks:
                kept.append(x[:, 1:])
        tokens_cls = x.float()
        if depth - 1 in attention_blocks | each_block:
            query, key, _ = self._project(last, last.ln_1(tokens_cls))
            note(depth - 1, attention_with_weights(query, key, None, last.attn.num_heads)[1])
        if token_blocks == depth:
            kept.append(last(tokens_cls)[:, 1:].to(self.dtype))
        return ClipTokens(
            tokens_cls,
            None if total is None else total / len(attention_blocks),
            grid,
            torch.stack(kept) if kept else None,
            torch.stack(apart) if apart else None,
        )

    def _embed(self, images: Tensor) -> Tensor:
        tower = self.tower
        patches = tower.conv1(images.to(self.device, self.dtype))  # (B, D, h, w)
        positions = self.position_embedding((patches.shape[2], patches.shape[3]))
        cls = tower.class_embedding.to(self.dtype).expand(patches.shape[0], 1, -1)  # (B, 1, D)
        x = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1) + positions  # (B, N + 1, D)
        return cast("Tensor", tower.ln_pre(x))

    @staticmethod
    def _project(block: ResidualAttentionBlock, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = block.attn
        query, key, value = F.linear(normed, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
        return query, key, value

    def _block_with_attention(self, block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = self._project(block, block.ln_1(x))
        attended, weights = attention_with_weights(query, key, value, block.attn.num_heads)
        x = x + block.ls_1(block.attn.out_proj(attended))
        return x + block.ls_2(block.mlp(block.ln_2(x))), weights
