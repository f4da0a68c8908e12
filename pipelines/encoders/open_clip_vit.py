"""open_clip's own ViT, the image tower of OpenAI's, LAION's and most other CLIPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from pipelines.encoders.tower import Grid, Tail
from pipelines.ops.attention import OpenAttention, attended_values, by_head, mean_attention, packed_heads
from pipelines.ops.shifted_attention import shifted_attention


def fits(model: nn.Module) -> bool:
    """Return whether a model is an open_clip ViT of plain blocks that projects behind its last LayerNorm (unlike CoCa)."""
    return (
        isinstance(model, VisionTransformer)
        and model.attn_pool is None
        and model.proj is not None
        and all(isinstance(block, ResidualAttentionBlock) for block in model.transformer.resblocks)
    )


class OpenClipViT:
    """An open_clip ViT as a `pipelines.encoders.tower.VisionTower`; its one prefix token is CLS.

    Args:
        model: The image tower.
    """

    prefix = 1

    def __init__(self, model: nn.Module) -> None:
        self.model = cast("VisionTransformer", model)
        self.width: int = self.model.conv1.out_channels
        self.patch_size: int = self.model.patch_size[0]
        self._positions: dict[Grid, Tensor] = {}

    @property
    def blocks(self) -> list[ResidualAttentionBlock]:
        """The residual blocks, first to last."""
        return list(self.model.transformer.resblocks)

    def lower(self, dtype: torch.dtype) -> None:
        """Convert all layers before the last block to this precision."""
        for module in (self.model.conv1, self.model.ln_pre, *self.blocks[:-1]):
            module.to(dtype)

    def position_embedding(self, grid: Grid) -> Tensor:
        """Return the position table for ``grid``: CLS row kept, patch rows resized bilinearly, ``(1, h * w + 1, D)``."""
        if torch.compiler.is_exporting():  # sizes are symbols then and cannot be keys
            return self._resized(grid)
        if grid not in self._positions:
            self._positions[grid] = self._resized(grid)
        return self._positions[grid]

    def _resized(self, grid: Grid) -> Tensor:
        table = self.model.positional_embedding.float()  # (S * S + 1, D)
        side = round((table.shape[0] - 1) ** 0.5)
        patches = table[1:].T.reshape(1, -1, side, side)  # (1, D, S, S)
        resized = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)  # (1, D, h, w)
        # The reference keeps the resized table in half precision; maps differ by up to 1e-2 without this rounding.
        positions = torch.cat([table[:1], resized.flatten(2)[0].T]).half()  # (h * w + 1, D)
        return positions.unsqueeze(0).to(self.model.conv1.weight.dtype)

    def embed(self, images: Tensor) -> Tensor:
        """Return patches and CLS with their positions, ``(B, N + 1, D)``."""
        model = self.model
        patches = model.conv1(images)  # (B, D, h, w)
        positions = self.position_embedding((patches.shape[2], patches.shape[3]))
        cls = model.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)  # (B, 1, D)
        x = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1) + positions  # (B, N + 1, D)
        return cast("Tensor", model.ln_pre(x))

    def block(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Compute the output of a block, ``(B, N + 1, D)``."""
        block = self.blocks[index]
        return _behind_attention(block, x, attended_values(*_projected(block.attn, block.ln_1(x)), block.attn.num_heads))

    def attention(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Compute a block's attention, ``(B, N + 1, N + 1)``."""
        block = self.blocks[index]
        query, key, _ = _projected(block.attn, block.ln_1(x))
        return mean_attention(query, key, block.attn.num_heads)

    def block_with_attention(self, index: int, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Compute `block` and `attention` from one set of queries and keys."""
        block = self.blocks[index]
        query, key, value = _projected(block.attn, block.ln_1(x))
        attended = attended_values(query, key, value, block.attn.num_heads)
        return _behind_attention(block, x, attended), mean_attention(query, key, block.attn.num_heads)

    def opened(self, index: int, grid: Grid) -> OpenAttention:
        """Return the parts of a block's attention."""
        block: Any = self.blocks[index]
        attn, dtype = block.attn, block.attn.in_proj_weight.dtype

        def projected(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            query, key, value = (by_head(part, attn.num_heads) for part in _projected(attn, block.ln_1(x.to(dtype))))
            return query, key, value

        return OpenAttention(projected, lambda apart: attn.out_proj(packed_heads(apart, dtype)).float())

    def tail(self, grid: Grid) -> Tail:
        """Return the part of the model behind the last block's input; it is the same on every grid."""
        return block_tail(self.blocks[-1], cast("nn.LayerNorm", self.model.ln_post), cast("Tensor", self.model.proj))


def block_tail(block: Any, ln_post: Callable[[Tensor], Tensor], projection: Tensor) -> Tail:
    """Return the tail of a pre-norm residual block as open_clip builds it, a LayerNorm and a projection ``(D, E)``."""

    def output(tokens_cls: Tensor, activation: Tensor) -> Tensor:
        attended = attended_values(*_projected(block.attn, activation), block.attn.num_heads)  # (B, T, D)
        return _behind_attention(block, tokens_cls, attended)

    def value_tokens(activation: Tensor) -> Tensor:
        attn, width = block.attn, activation.shape[-1]
        value = F.linear(activation, attn.in_proj_weight[2 * width :], attn.in_proj_bias[2 * width :])  # (..., N, D)
        return cast("Tensor", attn.out_proj(value))

    def shifted(tokens_cls: Tensor, activation: Tensor, shift: Tensor) -> Tensor:
        attn = block.attn
        of_all = F.linear(shift, attn.in_proj_weight)  # (B, 3 D)
        attended = shifted_attention(*_projected(attn, activation), of_all, attn.num_heads, OpenClipViT.prefix)  # (B, T, D)
        return _behind_attention(block, tokens_cls, attended)

    return Tail(OpenClipViT.prefix, block.ln_1, output, value_tokens, lambda tokens: ln_post(tokens) @ projection, shifted)


def _projected(attn: Any, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = F.linear(normed, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    return query, key, value


def _behind_attention(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    x = x + block.ls_1(block.attn.out_proj(attended))  # (B, T, D)
    return cast("Tensor", x + block.ls_2(block.mlp(block.ln_2(x))))
