"""timm's VisionTransformer: DINO, DINOv2 with and without registers, SigLIP."""

from __future__ import annotations

from typing import Any, cast

from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from pipelines.encoders.timm_trunk import TimmTrunk, cuts_patches, projection, trunk_of
from pipelines.encoders.tower import Grid, Tail
from pipelines.ops.attention import OpenAttention, by_head, mean_attention, packed_heads


def fits(model: nn.Module) -> bool:
    """Return whether a model, or the one in open_clip's wrapper, is such a ViT of plain pre-norm blocks."""
    trunk = trunk_of(model)
    return (
        isinstance(trunk, VisionTransformer)
        and cuts_patches(trunk)
        and all(type(block) is Block and type(block.attn) is Attention and block.attn.gate is None for block in trunk.blocks)
    )


class TimmViT(TimmTrunk):
    """A timm ViT as a `pipelines.encoders.tower.VisionTower`."""

    def embed(self, images: Tensor) -> Tensor:
        """Return patches, CLS and registers with their positions, ``(B, P + N, D)``."""
        model = self.model
        return cast("Tensor", model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images)))))

    def block(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Compute the output of a block, ``(B, P + N, D)``."""
        return cast("Tensor", self.blocks[index](x))

    def attention(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Compute a block's attention, ``(B, P + N, P + N)``."""
        block = self.blocks[index]
        attn = block.attn
        query, key, _ = attn.qkv(block.norm1(x)).chunk(3, dim=-1)
        heads, split = attn.num_heads, (x.shape[0], x.shape[1], attn.num_heads, -1)
        query = attn.q_norm(query.view(split)).flatten(2)  # (B, P + N, D)
        key = attn.k_norm(key.view(split)).flatten(2)  # (B, P + N, D)
        return mean_attention(query, key, heads)

    def block_with_attention(self, index: int, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Compute `block` and `attention`; timm's fused kernel makes the output, so that it has the same bits in both cases."""
        return self.block(index, x, grid), self.attention(index, x, grid)

    def opened(self, index: int, grid: Grid) -> OpenAttention:
        """Return the parts of a block's attention."""
        block: Any = self.blocks[index]
        attn, dtype = block.attn, block.attn.qkv.weight.dtype

        def projected(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            query, key, value = (by_head(p, attn.num_heads) for p in attn.qkv(block.norm1(x.to(dtype))).chunk(3, dim=-1))
            return attn.q_norm(query.to(dtype)).float(), attn.k_norm(key.to(dtype)).float(), value

        return OpenAttention(projected, lambda apart: attn.proj(attn.norm(packed_heads(apart, dtype))).float())

    def tail(self, grid: Grid) -> Tail:
        """Return the part of the model behind the last block's input; it is the same on every grid."""
        block: Any = self.blocks[-1]
        attn = block.attn

        def output(tokens_cls: Tensor, activation: Tensor) -> Tensor:
            x = tokens_cls + block.ls1(attn(activation))  # (B, P + N, D)
            return cast("Tensor", x + block.ls2(block.mlp(block.norm2(x))))

        def value_tokens(activation: Tensor) -> Tensor:
            return cast("Tensor", attn.proj(attn.norm(attn.qkv(activation).chunk(3, dim=-1)[2])))  # (..., N, D)

        return Tail(self.prefix, block.norm1, output, value_tokens, projection(self.model, self.head))
