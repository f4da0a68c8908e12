"""The frozen CLIP image tower, split before its last block.

GradCAM needs the tokens that *enter* the last block, and the affinity needs the attention of several blocks. One pass over the
library's own modules gives both, without hooks and without a copy of the model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pipelines.encoders.tower import Grid, Tail, lowered, walk
from pipelines.encoders.weights import LoadedClip
from pipelines.ops.attention import OpenAttention


@dataclass(frozen=True)
class ClipTokens:
    """The result of one pass of the image tower.

    Attributes:
        tokens_cls: Tokens that enter the last block, ``(B, P + N, D)``, fp32, the P prefix tokens of the tower first (CLS).
        attention: Mean over the requested blocks of the head-averaged attention between patches, ``(B, N, N)``, fp32, or None
            if none was requested. Rows and columns of the prefix are dropped.
        grid: ``(h, w)`` with ``h * w == N``, row-major.
        block_tokens: Output of the first L blocks without the prefix, ``(L, B, N, D)``, or None if L is 0.
        block_attention: Attention of each block of ``each_block``, ``(A, B, N, N)``, fp32, or None if there is none.
        inputs: Input of each block, ``(B, P + N, D)``; empty if it was not requested.
    """

    tokens_cls: Tensor
    attention: Tensor | None
    grid: Grid
    block_tokens: Tensor | None = None
    block_attention: Tensor | None = None
    inputs: tuple[Tensor, ...] = ()


class ClipEncoder:
    """A frozen CLIP image tower of any kind in `pipelines.encoders.towers.TOWERS`.

    Args:
        clip: A loaded CLIP (see `pipelines.encoders.weights.build_clip`); its image tower is used directly, and changed if
            ``dtype`` is not fp32.
        device: Device of the tower.
        dtype: Precision of all blocks but the last, and of the last one's matrix products. The rest is fp32, because a softmax
            at scale 100 and its gradient are not accurate in half precision.

    Raises:
        UsageError: No adapter opens this tower.
    """

    def __init__(self, clip: LoadedClip, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        import open_clip

        from pipelines.encoders.towers import adapter_of

        self.weights = clip.weights
        self.device = device
        self.dtype = dtype
        self.model = clip.model.visual.to(device).eval().requires_grad_(False)
        self.tower = adapter_of(self.model, clip.weights.name, "--clip-model", text=True).make(self.model)
        self.logit_scale: float = clip.model.logit_scale.exp().item()
        self.patch_size = self.tower.patch_size
        self.width = self.tower.width
        mean, std = self.model.image_mean, self.model.image_std
        self.mean = cast("tuple[float, float, float]", tuple(mean or open_clip.OPENAI_DATASET_MEAN))
        self.std = cast("tuple[float, float, float]", tuple(std or open_clip.OPENAI_DATASET_STD))
        if dtype != torch.float32:
            self.tower.lower(dtype)

    @property
    def blocks(self) -> list[Any]:
        """The residual blocks, first to last."""
        return list(self.tower.blocks)

    def tail(self, grid: Grid) -> Tail:
        """Return the part behind `ClipTokens.tokens_cls` for read-outs.

        Args:
            grid: ``ClipTokens.grid``; the positions of some towers depend on it.
        """
        return lowered(self.tower.tail(grid), self.dtype)

    def opened(self, grid: Grid) -> tuple[OpenAttention, ...]:
        """Return the parts of the attention of every block.

        Args:
            grid: ``ClipTokens.grid``; the positions of some towers depend on it.
        """
        return tuple(self.tower.opened(index, grid) for index in range(len(self.blocks)))

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        attention_blocks: Collection[int] = (),
        token_blocks: int = 0,
        each_block: Collection[int] = (),
        inputs: bool = False,
    ) -> ClipTokens:
        """Run all blocks but the last; the last runs too if its tokens are requested.

        Args:
            images: Normalised RGB, ``(B, 3, H, W)`` fp32, both sides multiples of the patch size.
            attention_blocks: Blocks whose attention is averaged; 0 is the first, ``len(blocks) - 1`` the last.
                For the last block only its attention is computed.
            token_blocks: Number of blocks, from the first, whose output is kept.
            each_block: Blocks whose attention is kept apart.
            inputs: Whether to keep the input of each block.

        Returns:
            Tokens, attention and grid.

        Raises:
            ValueError: A block number is out of range.
        """
        walked = walk(self.tower, images.to(self.device, self.dtype), attention_blocks, token_blocks, each_block, inputs)
        apart = walked.block_tokens, walked.block_attention, walked.inputs
        return ClipTokens(walked.tokens_cls, walked.attention, walked.grid, *apart)
