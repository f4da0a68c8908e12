"""The frozen DINO ViT: attention and tokens on CLIP's grid."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pipelines.encoders.clip import checked_blocks
from pipelines.encoders.weights import Weights, build_dino
from pipelines.ops.attention import attention_with_weights


@dataclass(frozen=True)
class DinoTokens:
    """What one pass leaves behind.

    Attributes:
        tokens: Tokens that enter the last block, ``(B, N, D)`` fp32, without CLS and registers.
        attention: Mean over the requested blocks of the head-averaged attention between patches, ``(B, N, N)``, fp32.
    """

    tokens: Tensor
    attention: Tensor


class DinoEncoder:
    """A frozen ViT from timm.

    Args:
        weights: Model name and resolved weights (see `pipelines.encoders.weights`).
        device: Where to run.
        dtype: Precision of the pass; attention is always returned in fp32.
    """

    def __init__(self, weights: Weights, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.weights = weights
        self.device = device
        self.dtype = dtype
        self.model = cast("Any", build_dino(weights)).to(device, dtype).eval().requires_grad_(False)
        self.patch_size: int = self.model.patch_embed.patch_size[0]
        config = self.model.pretrained_cfg
        self.mean = cast("tuple[float, float, float]", tuple(config["mean"]))
        self.std = cast("tuple[float, float, float]", tuple(config["std"]))

    @property
    def blocks(self) -> list[Any]:
        """The transformer blocks, first to last."""
        return list(self.model.blocks)

    @torch.inference_mode()
    def encode(self, images: Tensor, attention_blocks: Collection[int]) -> DinoTokens:
        """Run all blocks but the last, and the attention of the last if asked for.

        Args:
            images: Normalised RGB, ``(B, 3, H, W)`` fp32, both sides multiples of the patch size.
            attention_blocks: Blocks whose attention is averaged; 0 is the first, ``len(blocks) - 1`` the last.

        Returns:
            Tokens and attention, CLS and register tokens dropped.

        Raises:
            ValueError: No block, or one that is not there.
        """
        attention_blocks = checked_blocks(attention_blocks, len(self.blocks))
        model = self.model
        x = model.patch_embed(images.to(self.device, self.dtype))  # (B, h, w, D)
        x = model.norm_pre(model.patch_drop(model._pos_embed(x)))  # (B, T, D)
        *most, last = self.blocks
        total: Tensor | None = None
        for index, block in enumerate(most):
            if index in attention_blocks:
                weights = self._attention(block, x)
                total = weights if total is None else total.add_(weights)
            x = block(x)
        if len(most) in attention_blocks:
            weights = self._attention(last, x)
            total = weights if total is None else total.add_(weights)
        if total is None:
            raise ValueError("attention_blocks: expected at least one block")
        prefix = model.num_prefix_tokens
        attention = total[:, prefix:, prefix:] / len(attention_blocks)  # (B, N, N)
        return DinoTokens(x[:, prefix:].float(), attention)

    @staticmethod
    def _attention(block: Any, x: Tensor) -> Tensor:
        attn = block.attn
        query, key, _ = attn.qkv(block.norm1(x)).chunk(3, dim=-1)
        heads, split = attn.num_heads, (x.shape[0], x.shape[1], attn.num_heads, -1)
        query = attn.q_norm(query.view(split)).flatten(2)  # (B, T, D)
        key = attn.k_norm(key.view(split)).flatten(2)  # (B, T, D)
        return attention_with_weights(query, key, None, heads)[1]
