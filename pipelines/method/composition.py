"""The method, in the order of the paper: read out, mask the source columns, build and filter the affinity, propagate.

The commands, the on-line labels of the training, the Python objects and the benchmarks all make their maps with these
functions. The needs of the parts in use decide which encoders run and which stores are opened.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.method.evidence import FLOATS, Evidence
from pipelines.method.parts_in_use import affinity_filters_of, affinity_of, aligned_readout_of, column_masks_of, readout_of
from pipelines.ops.affinity import propagate
from pipelines.ops.mix import mix
from pipelines.ops.scaling import min_max
from pipelines.ops.transfer import sent
from pipelines.options.stages import CamsOptions, RefineOptions

PLAIN_SHARE = 0.05
"""Smallest weight of plain CLIP's map beside the map through alignment heads; a map of lower weight is not computed."""


def initial_cams(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Compute the class activation maps of every image's own classes (SSR, section 3.2).

    Args:
        evidence: Evidence with the fields of `pipelines.method.parts_in_use.cam_needs`.
        options: Read-outs and their numbers.

    Returns:
        ``(T, N)`` in [0, 1]. With alignment heads, each class is a mix of its aligned map and plain CLIP's map by its weight;
        the plain map is left out where its weight is below `PLAIN_SHARE`.
    """
    plain = readout_of(options)
    shape = (sum(evidence.counts), evidence.grid[0] * evidence.grid[1])  # T, N
    if "alignment" not in evidence:
        return mix([(1, plain.made(shape, evidence, options))])
    aligned = aligned_readout_of(options).made(shape, evidence, options)  # (T, N)
    weight = evidence.alignment.weight(evidence.labels)  # (T,)
    asked = 1 - weight >= PLAIN_SHARE  # (T,)
    if not bool(asked.any()):
        return mix([(1, aligned)])
    weight = sent(torch.where(asked, weight, 1).unsqueeze(1), aligned.device)  # (T, 1)
    return mix([(weight, aligned), (1 - weight, plain.made(shape, evidence.replacing(asked=asked), options))])


def refined_cams(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor:
    """Spread the CAMs along the affinity, from the source patches that the column masks keep (SSR, section 3.3, Eq. 8-11).

    Args:
        evidence: Evidence with the fields of `pipelines.method.parts_in_use.refine_needs`.
        maps: Initial CAMs ``(T, N)`` in [0, 1].
        options: Affinity, column masks, propagation.

    Returns:
        ``(T, N)`` in [0, 1], 0 in padding. A class whose mask is empty stays 0.
    """
    padding = ~_valid_of_maps(evidence) if "valid" in evidence else None  # (T, N)
    if padding is not None:
        maps = maps.masked_fill(padding, 0)
    mask = column_mask(evidence, maps, options)
    shape = (len(evidence.labels), maps.shape[1], maps.shape[1])  # B, N, N
    dtypes = tuple(dict.fromkeys((*FLOATS, maps.dtype)))
    affinity = affinity_of(options).made(shape, evidence, options, dtypes=dtypes)  # (B, N, N)
    for part in affinity_filters_of(options):
        affinity = part.made(shape, evidence, affinity, options, dtypes=dtypes)  # (B, N, N)
    spread = propagate(
        affinity,
        evidence.padded(maps),
        mask if mask is None else evidence.padded(mask.to(maps.dtype)),
        options.power,
        options.mask_every_step,
    )  # (B, K, N)
    spread = evidence.flat(spread)  # (T, N)
    if padding is None:
        return min_max(spread)
    lowest = spread.masked_fill(padding, float("inf")).amin(dim=-1, keepdim=True)  # (T, 1): padding is not the minimum
    return min_max(torch.where(padding, lowest, spread)).masked_fill(padding, 0)


def column_mask(evidence: Evidence, maps: Tensor, options: RefineOptions) -> Tensor | None:
    """Compute the product of the column masks in use, ``(T, N)`` bool; None if there is none."""
    shape = (maps.shape[0], maps.shape[1])  # T, N
    masks = [part.made(shape, evidence, maps, options, dtypes=(torch.bool,)) for part in column_masks_of(options)]
    return torch.stack(masks).all(dim=0) if masks else None


def _valid_of_maps(evidence: Evidence) -> Tensor:
    image = [index for index, count in enumerate(evidence.counts) for _ in range(count)]
    return evidence.valid[sent(torch.tensor(image, dtype=torch.int64), evidence.valid.device)]  # (T, N)
