"""Images resized for the encoders, crops of them, and the views whose results are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.errors import ImageError, SsrError
from pipelines.method.evidence import Grid

Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class Photo:
    """A decoded image, resized for the encoders.

    Attributes:
        sample: Names the image and its labels.
        size: ``(H, W)`` of the file.
        grid: ``(h, w)`` of its maps at scale 1.
        inputs: Normalised input of CLIP or of a segmentation network, ``(3, H', W')``, one per scale.
        grids: Token grid at each scale; empty for a network without tokens.
        dino_inputs: Normalised input of DINO on the same grids, one per scale; empty if no part needs DINO.
        superpixels: Share of each token in each superpixel ``(S, N')``, one per scale; empty if no part needs them.
        superpixel_colours: Mean Lab colours ``(S, 3)``, or None if no part needs them.
    """

    sample: Sample
    size: tuple[int, int]
    grid: Grid
    inputs: tuple[Tensor, ...]
    grids: tuple[Grid, ...] = ()
    dino_inputs: tuple[Tensor, ...] = ()
    superpixels: tuple[Tensor, ...] = ()
    superpixel_colours: NDArray[np.float64] | None = None


def shapes(photo: Photo) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that all images of a batch share; equal grids at scale 1 may differ at another scale."""
    return photo.grid, *(tuple(pixels.shape) for pixels in photo.inputs)


def by_photo(maps: NDArray[Value], photos: Sequence[Photo]) -> list[NDArray[Value]]:
    """Split ``(T, ...)``, T (image, class) pairs, image by image, into the maps ``(K, ...)`` of each image.

    Raises:
        SsrError: A map holds NaN or infinity.
    """
    counts = [len(photo.sample.labels) for photo in photos]
    of_photos = np.split(maps, np.cumsum(counts)[:-1])
    for photo, own in zip(photos, of_photos, strict=True):
        if not np.isfinite(own).all():
            made = f"the maps of {photo.sample.image_id} hold NaN or infinity"
            raise SsrError(
                made, "a part in use returns them, such as --readout or --affinity; --precision fp32 has the widest range"
            )
    return of_photos


def too_large(photo: Photo) -> ImageError:
    """Return the error for an image that does not fit into memory."""
    height, width = photo.size
    patches = max((h * w for h, w in photo.grids), default=photo.grid[0] * photo.grid[1])
    found = f"an image of {width} x {height} with {patches:,} patches needs more memory than there is"
    return ImageError(found, "a smaller --long-side, fewer --workers, or another --device")


@dataclass(frozen=True)
class Crop:
    """One crop of an image.

    Attributes:
        slot: Place in the batch of all processes; the seed of every random draw for this crop.
        photo: The crop, resized for the encoders, with superpixels on the token grid.
        image: ``(3, S, S)`` fp32 RGB in [0, 255].
        valid: ``(S, S)`` bool: pixels of the image, not of the padding.
        target: ``(S, S)`` int64 ground truth, padding 255; None unless it was requested.
    """

    slot: int
    photo: Photo
    image: Tensor
    valid: Tensor
    target: Tensor | None


class View(NamedTuple):
    """One pass over an image.

    Attributes:
        scale: Index of the resolution factor, in the order of the option ``scales``.
        mirrored: The image is mirrored left to right.
    """

    scale: int = 0
    mirrored: bool = False


def averaged_over_views(forward: Callable[[View], Tensor], scales: Sequence[float], flip: bool, grid: Grid) -> Tensor:
    """Average a result over resolutions and mirror images.

    Args:
        forward: Maps a view to maps ``(..., h', w')``, mirrored as the view is.
        scales: Resolution factors.
        flip: Whether mirror images enter the average too.
        grid: ``(h, w)`` of the mean.

    Returns:
        ``(..., h, w)``.
    """
    views = [View(scale, mirrored) for scale in range(len(scales)) for mirrored in (False, True)[: 1 + flip]]
    total: Tensor | None = None
    for view in views:
        maps = forward(view)  # (..., h', w')
        maps = maps.flip(-1) if view.mirrored else maps
        if maps.shape[-2:] != grid:
            maps = _resized(maps, grid)
        total = maps if total is None else total + maps
    if total is None:
        raise ValueError("expected at least one scale")
    return total / len(views)


def _resized(maps: Tensor, grid: Grid) -> Tensor:
    """Resize ``(..., h', w')`` to ``(..., h, w)``, bilinearly."""
    shape = (*maps.shape[:-2], *grid)
    if maps.numel() == 0:  # images without classes, which torch refuses
        return maps.new_zeros(shape)
    return F.interpolate(maps.reshape(1, -1, *maps.shape[-2:]), size=grid, mode="bilinear").view(shape)
