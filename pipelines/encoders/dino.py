"""The frozen DINO ViT, which gives attention and tokens on CLIP's grid."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pipelines.encoders.tower import walk
from pipelines.encoders.weights import Weights, build_dino


@dataclass(frozen=True)
class DinoTokens:
    """The result of one pass.

    Attributes:
        tokens: Tokens that enter the last block, ``(B, N, D)`` fp32, without CLS and registers.
        attention: Mean over the requested blocks of the head-averaged attention between patches, ``(B, N, N)``, fp32.
    """

    tokens: Tensor
    attention: Tensor


class DinoEncoder:
    """A frozen image transformer of any kind in `pipelines.encoders.towers.TOWERS`.

    Args:
        weights: Model name and resolved weights (see `pipelines.encoders.weights`).
        device: Device of the model.
        dtype: Precision of the pass; attention is always returned in fp32.
    """

    def __init__(self, weights: Weights, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        from pipelines.encoders.towers import adapter_of

        self.weights = weights
        self.device = device
        self.dtype = dtype
        self.model = cast("Any", build_dino(weights)).to(device, dtype).eval().requires_grad_(False)
        self.tower = adapter_of(self.model, weights.name, "--dino-model").make(self.model)
        self.patch_size = self.tower.patch_size
        config = self.model.pretrained_cfg
        self.mean = cast("tuple[float, float, float]", tuple(config["mean"]))
        self.std = cast("tuple[float, float, float]", tuple(config["std"]))

    @property
    def blocks(self) -> list[Any]:
        """The transformer blocks, first to last."""
        return list(self.tower.blocks)

    @torch.inference_mode()
    def encode(self, images: Tensor, attention_blocks: Collection[int]) -> DinoTokens:
        """Run all blocks but the last, and the attention of the last if it is requested.

        Args:
            images: Normalised RGB, ``(B, 3, H, W)`` fp32, both sides multiples of the patch size.
            attention_blocks: Blocks whose attention is averaged; 0 is the first, ``len(blocks) - 1`` the last.

        Returns:
            Tokens and attention, without CLS and register tokens.

        Raises:
            ValueError: No block is requested, or a number is out of range.
        """
        walked = walk(self.tower, images.to(self.device, self.dtype), attention_blocks)
        if walked.attention is None:
            raise ValueError("attention_blocks: expected at least one block")
        return DinoTokens(walked.tokens_cls[:, self.tower.prefix :].float(), walked.attention)
