"""CLIP's last block, opened: what stands between its input and the joint space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(Protocol):
    """A pre-norm transformer block, as open_clip builds it."""

    attn: nn.MultiheadAttention
    ln_1: Callable[[Tensor], Tensor]
    ls_1: Callable[[Tensor], Tensor]
    ln_2: Callable[[Tensor], Tensor]
    ls_2: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LastBlock:
    """What stands behind the last block's input.

    Attributes:
        block: The last block.
        ln_post: The tower's closing LayerNorm.
        projection: ``(D, E)`` into the joint space.
    """

    block: ResidualBlock
    ln_post: Callable[[Tensor], Tensor]
    projection: Tensor

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens ``(..., N, D)`` into the joint space, ``(..., N, E)``, not normalised."""
        return self.ln_post(tokens) @ self.projection

    def features(self, tokens_cls: Tensor, activation: Tensor) -> Tensor:
        """Projected patch tokens, from the block's input and its ``ln_1`` output.

        Args:
            tokens_cls: Block input ``(B, N + 1, D)``, CLS first.
            activation: ``block.ln_1(tokens_cls)``, separate so that a gradient can be taken with respect to it.

        Returns:
            ``(B, N, E)``, not normalised.
        """
        attn = self.block.attn
        batch, count, width = activation.shape
        split = (batch, count, attn.num_heads, width // attn.num_heads)
        projected = F.linear(activation, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
        query, key, value = (part.view(split).transpose(1, 2) for part in projected)  # (B, heads, N + 1, D / heads)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, count, width)
        x = tokens_cls + self.block.ls_1(attn.out_proj(attended))  # (B, N + 1, D)
        x = x + self.block.ls_2(self.block.mlp(self.block.ln_2(x)))  # (B, N + 1, D)
        return self.project(x[:, 1:])  # (B, N, E)

    def value_features(self, tokens_cls: Tensor, activation: Tensor) -> Tensor:
        """Like `features`, but the value path alone: no attention, no residual, no MLP.

        Args:
            tokens_cls: Not used; stands where `features` has it.
            activation: ``block.ln_1(tokens_cls)``, ``(B, N + 1, D)``.

        Returns:
            ``(B, N, E)``, not normalised.
        """
        return self.project(self.value_tokens(activation[:, 1:]))  # (B, N, E)

    def value_tokens(self, activation: Tensor) -> Tensor:
        """Values of ``ln_1``'s output behind the attention's output projection, ``(..., N, D)`` of ``(..., N, D)``."""
        attn = self.block.attn
        width = activation.shape[-1]
        value = F.linear(activation, attn.in_proj_weight[2 * width :], attn.in_proj_bias[2 * width :])  # (..., N, D)
        projected: Tensor = attn.out_proj(value)
        return projected


@torch.inference_mode()
def value_tokens(tokens_cls: Tensor, last_block: LastBlock) -> Tensor:
    """Output projection of the values of the last block.

    Args:
        tokens_cls: Input of the last block, ``(B, N + 1, D)``, CLS first.
        last_block: The modules behind it.

    Returns:
        ``(B, N, D)``, patches only.
    """
    return last_block.value_tokens(last_block.block.ln_1(tokens_cls[:, 1:]))
