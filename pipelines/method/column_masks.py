"""Column masks, which choose the source patches of each class. `COLUMN_MASKS` is the table behind ``--superpixel-mask``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipelines.method.evidence import Evidence, Part, always
from pipelines.ops import superpixel_mask
from pipelines.ops.box_mask import box_mask
from pipelines.ops.kmeans import kmeans, one_hot
from pipelines.options.stages import RefineOptions
from pipelines.plugins import Table

ColumnMask = Callable[[Evidence, Tensor, RefineOptions], Tensor]
"""Maps evidence, maps ``(T, N)`` in [0, 1] and options to ``(T, N)`` bool: the patches that are kept as sources."""


def box(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """Keep the boxes around strong regions (CLIP-ES, section 3.4)."""
    return box_mask(maps, evidence.grid, options.box_threshold)


def token(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """Keep single patches above a threshold, as a control that shows what superpixels add."""
    return superpixel_mask.token_gate(maps, options.mask_threshold)


def gate(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """Keep the patches whose superpixels are activated on average."""
    cams = evidence.padded(maps)  # (B, K, N)
    return evidence.flat(superpixel_mask.superpixel_gate(cams, evidence.superpixels, options.mask_threshold))


def colour(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """Keep clusters of superpixels' colours that hold a share of the activation (SGC as in SSR, Eq. 8 and 10)."""
    members = _clustered(evidence, evidence.superpixel_colours, options)  # (B, S, C)
    cams, high = evidence.padded(maps), options.colour_high  # (B, K, N)
    return evidence.flat(superpixel_mask.colour_mask(cams, evidence.superpixels, members, high, options.mask_threshold))


def cluster(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """Keep patches by their superpixels and by clusters of these in DINO's feature space, with half the vote each."""
    features = superpixel_mask.superpixel_features(evidence.dino_tokens, evidence.superpixels)  # (B, S, D)
    members = _clustered(evidence, features, options)  # (B, S, C)
    cams = evidence.padded(maps)  # (B, K, N)
    return evidence.flat(superpixel_mask.cluster_gate(cams, evidence.superpixels, members, options.mask_threshold))


def _clustered(evidence: Evidence, features: Tensor, options: RefineOptions) -> Tensor:
    """Cluster superpixels by their features ``(B, S, F)`` and return the memberships ``(B, S, C)``."""
    valid = evidence.superpixels.sum(dim=-1) > 0  # (B, S): every superpixel has a share of some token
    return one_hot(kmeans(features, options.clusters, valid), options.clusters)


COLUMN_MASKS: Table[Part[ColumnMask, RefineOptions]] = Table(
    "column mask",
    Part,
    {
        "box": Part(box, always(), ("box_threshold",)),
        "token": Part(token, always(), ("mask_threshold",)),
        "gate": Part(gate, always("superpixels"), ("mask_threshold",)),
        "colour": Part(colour, always("superpixels", "superpixel_colours"), ("mask_threshold", "clusters", "colour_high")),
        "cluster": Part(cluster, always("superpixels", "dino_tokens"), ("mask_threshold", "clusters")),
    },
)


def column_mask_names(options: RefineOptions) -> list[str]:
    """Return the names of the masks in use, whose product is taken."""
    superpixels = [] if options.superpixel_mask == "none" else [options.superpixel_mask]
    return ["box", *superpixels] if options.box_mask else superpixels
