"""timm's Eva: DINOv3, EVA-CLIP, Perception Encoder; their positions are rotations of queries and keys."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaBlock
from torch import Tensor, nn

from pipelines.encoders.timm_trunk import TimmTrunk, cuts_patches, projection, trunk_of
from pipelines.encoders.tower import Grid, Tail
from pipelines.ops.attention import OpenAttention, mean_attention, packed_heads


def fits(model: nn.Module) -> bool:
    """Return whether a model, or the one in open_clip's wrapper, is an Eva of pre-norm blocks (EVA02-E has post-norm ones)."""
    trunk = trunk_of(model)
    return (
        isinstance(trunk, Eva)
        and cuts_patches(trunk)
        and all(isinstance(block, EvaBlock) and block.attn.gate is None for block in trunk.blocks)
    )


class TimmEva(TimmTrunk):
    """A timm Eva as a `pipelines.encoders.tower.VisionTower`."""

    def embed(self, images: Tensor) -> Tensor:
        """Return patches, CLS and registers with their absolute positions, if there are some, ``(B, P + N, D)``."""
        x, _ = self.model._pos_embed(self.model.patch_embed(images))
        return cast("Tensor", self.model.norm_pre(x))

    def block(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Compute the output of a block, ``(B, P + N, D)``."""
        return cast("Tensor", self.blocks[index](x, rope=self._rotation(index, grid)))

    def attention(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Compute a block's attention, ``(B, P + N, P + N)``."""
        attn = self.blocks[index].attn
        query, key, _ = (part.flatten(2) for part in self._attending(index, x, grid))  # (B, T, heads * d)
        return mean_attention(query, key, attn.num_heads)

    def block_with_attention(self, index: int, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Compute `block` and `attention`; timm's own forward makes the output, so that it has the same bits in both cases."""
        return self.block(index, x, grid), self.attention(index, x, grid)

    def opened(self, index: int, grid: Grid) -> OpenAttention:
        """Return the parts of a block's attention."""
        attn = self.blocks[index].attn
        dtype = attn.proj.weight.dtype

        def projected(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            query, key, value = (part.transpose(1, 2).float() for part in self._attending(index, x.to(dtype), grid))
            return query, key, value

        return OpenAttention(projected, lambda apart: attn.proj(attn.norm(packed_heads(apart, dtype))).float())

    def tail(self, grid: Grid) -> Tail:
        """Return the part of the model behind the last block's input; the rotations depend on the grid."""
        block, index = self.blocks[-1], len(self.blocks) - 1
        attn, rotation = block.attn, self._rotation(index, grid)

        def output(tokens_cls: Tensor, activation: Tensor) -> Tensor:
            return _behind_attention(block, tokens_cls, attn(activation, rope=rotation))

        def value_tokens(activation: Tensor) -> Tensor:
            value = _all_heads(attn, _projected(attn, activation)[2]).flatten(-2)  # (..., N, D)
            return cast("Tensor", attn.proj(attn.norm(value)))

        return Tail(self.prefix, block.norm1, output, value_tokens, projection(self.model, self.head))

    def _attending(self, index: int, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values that a block's attention multiplies, ``(B, T, heads, d)`` each."""
        block = self.blocks[index]
        attn, rotation = block.attn, self._rotation(index, grid)
        query, key, value = _projected(attn, block.norm1(x))  # (B, T, heads, d) each
        query, key = (_rotated(attn, norm(p), rotation, value) for norm, p in ((attn.q_norm, query), (attn.k_norm, key)))
        return _all_heads(attn, query), _all_heads(attn, key), _all_heads(attn, value)

    def _rotation(self, index: int, grid: Grid) -> Tensor | None:
        """Return sines and cosines of the positions; some models have them for each block and head."""
        rope = self.model.rope
        if rope is None:
            return None
        if getattr(rope, "feat_shape", None) is not None:  # it keeps the rotations of one grid
            rope.update_feat_shape(grid)
        embedding = rope.get_embed(grid)
        return cast("Tensor", embedding[index] if self.model.rope_mixed else embedding)


def _projected(attn: Any, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values by head, ``(..., T, heads, d)``; keys and values may have fewer heads."""
    if attn.qkv is None:
        parts = [attn.q_proj(normed), attn.k_proj(normed), attn.v_proj(normed)]
    else:
        packed = getattr(attn, "q_bias", None) is not None
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]) if packed else attn.qkv.bias
        parts = list(F.linear(normed, attn.qkv.weight, bias).chunk(3, dim=-1))
    query, key, value = (part.unflatten(-1, (-1, attn.head_dim)) for part in parts)
    return query, key, value


def _rotated(attn: Any, part: Tensor, rotation: Tensor | None, like: Tensor) -> Tensor:
    """Rotate the patches by their positions; prefix tokens have none."""
    if rotation is None:
        return part
    prefix, by_head = attn.num_prefix_tokens, part.transpose(1, 2)  # (B, heads, T, d)
    turned = apply_rot_embed_cat(by_head[:, :, prefix:], rotation, half=attn.rotate_half)
    return torch.cat([by_head[:, :, :prefix], turned], dim=2).type_as(like).transpose(1, 2)  # (B, T, heads, d)


def _all_heads(attn: Any, part: Tensor) -> Tensor:
    """Repeat shared keys and values for each query head that uses them."""
    return part.repeat_interleave(attn.num_heads // part.shape[-2], dim=-2)


def _behind_attention(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    x = x + (attended if block.gamma_1 is None else block.gamma_1 * attended)  # (B, T, D)
    transformed = block.mlp(block.norm2(x))
    return cast("Tensor", x + (transformed if block.gamma_2 is None else block.gamma_2 * transformed))
