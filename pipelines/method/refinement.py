"""The refinement of one image's CAMs: options chosen here, maths in `pipelines.ops`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.errors import UsageError
from pipelines.ops.affinity import fuse_attention, normalise_rows, propagate, sinkhorn
from pipelines.ops.box_mask import box_mask
from pipelines.ops.kmeans import kmeans
from pipelines.ops.scaling import min_max
from pipelines.ops.superpixel_mask import (
    cluster_gate,
    colour_mask,
    superpixel_features,
    superpixel_gate,
    token_gate,
)
from pipelines.options.stages import RefineOptions


def uses_dino(options: RefineOptions) -> bool:
    """Whether DINO's attention has a share in the affinity."""
    return options.dino_blocks > 0 and options.dino_weight > 0


def uses_clip(options: RefineOptions) -> bool:
    """Whether CLIP's attention has a share in the affinity."""
    return options.clip_blocks > 0 and options.dino_weight < 1


def uses_superpixels(options: RefineOptions) -> bool:
    """Whether the column mask is made from superpixels."""
    return options.superpixel_mask in {"gate", "colour", "cluster"}


def check_encoders(options: RefineOptions) -> None:
    """Refuse options that no encoder is left for.

    Raises:
        UsageError: No attention at all, or clusters without DINO's features.
    """
    if not uses_clip(options) and not uses_dino(options):
        raise UsageError(
            "no attention left: clip_blocks and dino_blocks are both unused", "--clip-blocks, --dino-blocks, --dino-weight"
        )
    if options.superpixel_mask == "cluster" and not uses_dino(options):
        raise UsageError("--superpixel-mask cluster needs DINO", "--dino-weight above 0, or --superpixel-mask gate")


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


@dataclass(frozen=True)
class GridSuperpixels:
    """A photo's superpixels as the refinement needs them.

    Attributes:
        membership: ``(S, N)`` share of each token in each superpixel.
        colours: ``(S, 3)`` mean Lab colours, or None if no option asks for them.
        features: ``(S, D)`` mean DINO features, or None if no option asks for them.
    """

    membership: Tensor
    colours: NDArray[np.float64] | None = None
    features: NDArray[np.float32] | None = None

    def with_features(self, dino_tokens: Tensor) -> GridSuperpixels:
        """Add the mean features of DINO's tokens ``(N, D)``."""
        return replace(self, features=superpixel_features(dino_tokens, self.membership.to(dino_tokens.device)))


def column_mask(
    cam: Tensor, grid: tuple[int, int], superpixels: GridSuperpixels | None, options: RefineOptions
) -> Tensor | None:
    """Product of the column masks that the options ask for, or None.

    Args:
        cam: ``(K, N)`` in [0, 1].
        grid: ``(h, w)``.
        superpixels: Needed by ``superpixel_mask`` colour, gate and cluster.
        options: ``box_mask``, ``superpixel_mask`` and their numbers.

    Returns:
        ``(K, N)`` of zeros and ones.
    """
    masks: list[Tensor] = []
    if len(cam) == 0:  # a photo without classes
        return None
    if options.box_mask:
        masks.append(box_mask(cam, grid, options.box_threshold))
    if options.superpixel_mask == "token":
        masks.append(token_gate(cam, options.mask_threshold))
    elif options.superpixel_mask != "none":
        if superpixels is None:
            raise ValueError(f"superpixel_mask {options.superpixel_mask!r} needs superpixels")
        membership = superpixels.membership.to(cam.device)
        if options.superpixel_mask == "gate":
            masks.append(superpixel_gate(cam, membership, options.mask_threshold))
        else:
            vectors = superpixels.colours if options.superpixel_mask == "colour" else superpixels.features
            if vectors is None:
                raise ValueError(f"superpixel_mask {options.superpixel_mask!r} needs one vector a superpixel")
            cluster = kmeans(vectors, options.clusters)
            if options.superpixel_mask == "colour":
                masks.append(colour_mask(cam, membership, cluster, options.colour_high, options.mask_threshold))
            else:
                masks.append(cluster_gate(cam, membership, cluster, options.mask_threshold))
    return torch.stack(masks).all(dim=0).to(cam.dtype) if masks else None


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


def refined_maps(
    cam: Tensor,
    grid: tuple[int, int],
    attention: tuple[Tensor | None, Tensor | None],
    superpixels: GridSuperpixels | None,
    options: RefineOptions,
) -> Tensor:
    """The whole refinement of one image.

    Args:
        cam: Initial CAM ``(K, N)`` in [0, 1].
        grid: ``(h, w)``.
        attention: CLIP's and DINO's ``(N, N)``; None for one that is not there.
        superpixels: If the options ask for them, with what they ask for.
        options: Affinity, masks, propagation.

    Returns:
        ``(K, N)`` in [0, 1].
    """
    clip, dino = attention
    affinity = build_affinity(clip if uses_clip(options) else None, dino if uses_dino(options) else None, options)  # (N, N)
    return refine_cam(cam, affinity, column_mask(cam, grid, superpixels, options), options)
