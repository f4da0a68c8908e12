"""Common parts of timm's transformers: any image size, a precision before the last block, and a map to the joint space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from open_clip.timm_model import TimmModel
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.format import Format
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

TOKENWISE = ("", "token", "avg")
"""Poolings of timm behind which every token can be projected separately."""


def trunk_of(model: nn.Module) -> Any:
    """Return timm's own model, which open_clip wraps in a model with another head."""
    return model.trunk if isinstance(model, TimmModel) else model


def cuts_patches(model: nn.Module) -> bool:
    """Return whether a model cuts images into square patches without convolutions before (ViTamin and MobileCLIP have some)."""
    embed = getattr(trunk_of(model), "patch_embed", None)
    return isinstance(embed, PatchEmbed) and embed.patch_size[0] == embed.patch_size[1]


def can_project(model: nn.Module) -> bool:
    """Return whether `projection` supports the model's pooling, so that single tokens reach the joint space."""
    trunk = trunk_of(model)
    pool = getattr(trunk, "attn_pool", None)
    if "pool" in dict(getattr(model, "head", nn.Identity()).named_children()):  # a head of open_clip's own, for feature maps
        return False
    if pool is None:
        return trunk.global_pool in TOKENWISE
    return isinstance(pool, AttentionPoolLatent) and pool.latent_len == 1 and pool.pos_embed is None


class TimmTrunk:
    """The part of a `pipelines.encoders.tower.VisionTower` that does not depend on the attention of a block.

    Args:
        model: timm's model, or open_clip's wrapper around it. The model is changed: it then takes images of any size.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = trunk_of(model)
        self.head: nn.Module = cast("nn.Module", model.head) if isinstance(model, TimmModel) else nn.Identity()
        patch = self.model.patch_embed
        self.width: int = self.model.embed_dim
        self.patch_size: int = patch.patch_size[0]
        self.prefix: int = self.model.num_prefix_tokens
        if not self.model.dynamic_img_size:  # this sets what the argument of timm would have set
            self.model.dynamic_img_size = True
            patch.strict_img_size, patch.flatten, patch.output_fmt = False, False, Format.NHWC

    @property
    def blocks(self) -> list[Any]:
        """The transformer blocks, first to last."""
        return list(self.model.blocks)

    def lower(self, dtype: torch.dtype) -> None:
        """Convert all layers before the last block to this precision."""
        for module in (self.model.patch_embed, self.model.norm_pre, *self.blocks[:-1]):
            module.to(dtype)
        for parameter in self.model.parameters(recurse=False):  # positions, CLS and registers
            parameter.data = parameter.data.to(dtype)


def projection(model: Any, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the map from block output into the joint space, which treats every token separately.

    If the model pools by attention (SigLIP), a token takes the pool's value path, as if the pool had only this token.

    Args:
        model: timm's model.
        head: The module behind it.

    Returns:
        A function from ``(..., N, D)`` to ``(..., N, E)``.
    """
    pool = model.attn_pool

    def pooled(tokens: Tensor) -> Tensor:
        if pool is None:
            return tokens
        value = pool.proj(pool.kv(tokens).chunk(2, dim=-1)[1])  # (..., N, D)
        return cast("Tensor", value if pool.mlp is None else value + pool.mlp(pool.norm(value)))

    return lambda tokens: head(model.head(model.fc_norm(pooled(model.norm(tokens)))))
