"""Initial CAMs of a batch of photos, averaged over resolutions and mirror images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.method.composition import initial_cams
from pipelines.method.encoders import Encoders
from pipelines.method.evidence import Evidence
from pipelines.method.photo import Photo, View, averaged_over_views
from pipelines.ops.scaling import min_max
from pipelines.options.stages import CamsOptions


def extract_cams(
    encoders: Encoders, photos: Sequence[Photo], options: CamsOptions, encoded: Mapping[View, Evidence] | None = None
) -> list[Tensor]:
    """Initial CAMs of photos of one padded size.

    Args:
        encoders: With `pipelines.method.parts_in_use.cam_needs` among their needs.
        photos: A batch, prepared for ``options.scales``; all have the same grid at every scale.
        options: Read-out, scales and flip.
        encoded: Views of the batch that have been encoded already.

    Returns:
        For each photo ``(K, h, w)`` fp32 in [0, 1], K = its classes, in the order of ``sample.labels``.
    """

    def maps_of(view: View) -> Tensor:
        evidence = (encoded or {}).get(view) or encoders.encode(photos, view)
        return initial_cams(evidence, options).view(-1, *evidence.grid)  # (T, h', w')

    maps = averaged_over_views(maps_of, options.scales, options.flip, photos[0].grid)  # (T, h, w)
    maps = min_max(maps.flatten(1)).view_as(maps)
    return list(torch.split(maps, [len(photo.sample.labels) for photo in photos]))
