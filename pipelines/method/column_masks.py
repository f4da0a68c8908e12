"""Column masks: which source patches may spread a class. `COLUMN_MASKS` is the table behind ``--superpixel-mask``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.method.evidence import Evidence, Part, always
from pipelines.ops import superpixel_mask
from pipelines.ops.box_mask import box_mask
from pipelines.ops.kmeans import kmeans
from pipelines.options.stages import RefineOptions

ColumnMask = Callable[[Evidence, Tensor, RefineOptions], Tensor]
"""Evidence, maps ``(T, N)`` in [0, 1] and options -> ``(T, N)`` bool: the patches that are kept as sources."""


def box(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """Boxes around strong regions (CLIP-ES, section 3.4)."""
    return box_mask(maps, evidence.grid, options.box_threshold)


def token(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """Single patches above a threshold: the control that shows what superpixels add."""
    return superpixel_mask.token_gate(maps, options.mask_threshold)


def gate(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """Patches whose superpixels are activated on average."""
    return _by_image(
        evidence,
        maps,
        lambda index, cam: superpixel_mask.superpixel_gate(cam, evidence.superpixels[index], options.mask_threshold),
    )


def colour(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """SGC as written: clusters of superpixels' colours that hold a share of the activation (SSR, Eq. 8 and 10)."""

    def mask(index: int, cam: Tensor) -> Tensor:
        clusters = kmeans(evidence.superpixel_colours[index], options.clusters)  # (S,)
        membership = evidence.superpixels[index]  # (S, N)
        return superpixel_mask.colour_mask(cam, membership, clusters, options.colour_high, options.mask_threshold)

    return _by_image(evidence, maps, mask)


def cluster(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """Superpixels and their clusters in DINO's feature space, half the vote each."""

    def mask(index: int, cam: Tensor) -> Tensor:
        membership = evidence.superpixels[index]  # (S, N)
        features = superpixel_mask.superpixel_features(evidence.dino_tokens[index], membership)  # (S, D)
        return superpixel_mask.cluster_gate(cam, membership, kmeans(features, options.clusters), options.mask_threshold)

    return _by_image(evidence, maps, mask)


def _by_image(evidence: Evidence, maps: Tensor, mask: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The masks ``(T, N)`` of all images with a class, of the index and the maps ``(K, N)`` of each."""
    return torch.cat([mask(index, cam) if len(cam) else cam > 0 for index, cam in enumerate(evidence.by_image(maps))])


COLUMN_MASKS: dict[str, Part[ColumnMask, RefineOptions]] = {
    "box": Part(box, always(), ("box_threshold",)),
    "token": Part(token, always(), ("mask_threshold",)),
    "gate": Part(gate, always("superpixels"), ("mask_threshold",)),
    "colour": Part(colour, always("superpixels", "superpixel_colours"), ("mask_threshold", "clusters", "colour_high")),
    "cluster": Part(cluster, always("superpixels", "dino_tokens"), ("mask_threshold", "clusters")),
}


def column_mask_names(options: RefineOptions) -> list[str]:
    """The masks in use; their product is taken."""
    superpixels = [] if options.superpixel_mask == "none" else [options.superpixel_mask]
    return ["box", *superpixels] if options.box_mask else superpixels
