"""The refinement of one image's CAMs: options chosen here, maths in `pipelines.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.ops.affinity import fuse_attention, normalise_rows, propagate, sinkhorn
from pipelines.ops.box_mask import box_mask
from pipelines.ops.gradcam import min_max
from pipelines.ops.superpixel_mask import superpixel_gate
from pipelines.options.stages import RefineOptions


def build_affinity(clip_attention: Tensor | None, dino_attention: Tensor | None, options: RefineOptions) -> Tensor:
    """Fuse, normalise, symmetrise.

    Args:
        clip_attention: ``(..., N, N)`` or None.
        dino_attention: ``(..., N, N)`` or None.
        options: ``dino_weight``, ``normalise``, ``sinkhorn_rounds``, ``symmetrise``.

    Returns:
        ``(..., N, N)``, row = receiver, column = source.
    """
    fused = fuse_attention(clip_attention, dino_attention, options.dino_weight)
    affinity = sinkhorn(fused, options.sinkhorn_rounds) if options.normalise == "sinkhorn" else normalise_rows(fused)
    return (affinity + affinity.transpose(-2, -1)) / 2 if options.symmetrise else affinity


def column_mask(cam: Tensor, grid: tuple[int, int], membership: Tensor | None, options: RefineOptions) -> Tensor | None:
    """Product of the column masks that the options ask for, or None.

    Args:
        cam: ``(K, N)`` in [0, 1].
        grid: ``(h, w)``.
        membership: ``(S, N)`` superpixels on the grid; needed by the superpixel masks.
        options: ``box_mask``, ``superpixel_mask`` and their numbers.

    Returns:
        ``(K, N)`` in [0, 1].
    """
    mask: Tensor | None = None
    if options.box_mask:
        mask = box_mask(cam, grid, options.box_threshold).to(cam.dtype)
    if options.superpixel_mask != "none":
        if membership is None:
            raise ValueError(f"superpixel_mask {options.superpixel_mask!r} needs superpixels")
        support = superpixel_gate(cam, membership, 0.25)
        mask = support if mask is None else mask * support
    return mask


def refine_cam(cam: Tensor, affinity: Tensor, mask: Tensor | None, options: RefineOptions) -> Tensor:
    """Propagate and scale to [0, 1].

    Args:
        cam: Initial CAM ``(K, N)`` in [0, 1].
        affinity: ``(N, N)``.
        mask: ``(K, N)`` or None.
        options: ``power``, ``mask_every_step``.

    Returns:
        ``(K, N)`` in [0, 1]. A class whose mask is empty stays zero.
    """
    return min_max(propagate(affinity, cam, mask, options.power, options.mask_every_step))
