"""Initial CAMs of a batch of images, averaged over resolutions and mirror images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pipelines.method.composition import initial_cams
from pipelines.method.encoders import Encoders
from pipelines.method.evidence import Evidence
from pipelines.method.photo import Photo, View, averaged_over_views
from pipelines.ops.scaling import min_max
from pipelines.options.stages import CamsOptions


def extract_cams(
    encoders: Encoders, photos: Sequence[Photo], options: CamsOptions, encoded: Mapping[View, Evidence] | None = None
) -> Tensor:
    """Compute the initial CAMs of images of one padded size.

    Args:
        encoders: Encoders whose needs include `pipelines.method.parts_in_use.cam_needs`.
        photos: A batch, prepared for ``options.scales``; all have the same grid at every scale.
        options: Read-out, scales and flip.
        encoded: Evidence of the views that are encoded already.

    Returns:
        ``(T, h, w)`` fp32 in [0, 1], image by image, with each image's classes in the order of ``sample.labels``.
    """

    def maps_of(view: View) -> Tensor:
        evidence = (encoded or {}).get(view) or encoders.encode(photos, view)
        return initial_cams(evidence, options).view(-1, *evidence.grid)  # (T, h', w')

    maps = averaged_over_views(maps_of, options.scales, options.flip, photos[0].grid)  # (T, h, w)
    return min_max(maps.flatten(1)).view_as(maps)


def one_pass_scales(options: CamsOptions) -> tuple[float, ...]:
    """Return the scales that `encode_and_extract` needs: those of the CAM, and scale 1, at which CAMs are refined."""
    return options.scales if 1.0 in options.scales else (*options.scales, 1.0)


def encode_and_extract(encoders: Encoders, photos: Sequence[Photo], options: CamsOptions) -> tuple[Evidence, Tensor]:
    """Return the evidence at scale 1 and the initial CAMs, in one pass of the encoders if the CAM has that scale alone.

    Args:
        encoders: Encoders whose needs include those of the CAM and of the refinement.
        photos: A batch, prepared for `one_pass_scales`; all have the same grid at every scale.
        options: Read-out, scales and flip.

    Returns:
        The evidence, for `pipelines.method.composition.refined_cams`, and the CAMs as `extract_cams` returns them.
    """
    view = View(one_pass_scales(options).index(1.0))
    evidence = encoders.encode(photos, view)
    return evidence, extract_cams(encoders, photos, options, {view: evidence})
