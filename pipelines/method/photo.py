"""Photos resized for the encoders, crops of them, and the views whose results are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.errors import ImageError
from pipelines.method.evidence import Grid

Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class Photo:
    """A decoded photo, resized for the encoders.

    Attributes:
        sample: Which photo, and its labels.
        size: ``(H, W)`` of the file.
        grid: ``(h, w)`` of its maps at scale 1.
        inputs: Normalised input of CLIP, or of a segmentation network, ``(3, H', W')`` a scale.
        grids: Token grid at each scale; empty for a network without tokens.
        dino_inputs: The same of DINO on the same grids; empty if no part needs DINO.
        superpixels: Share of each token in each superpixel ``(S, N')``, one a scale; empty if no part needs them.
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
    """What photos of one batch share: equal grids at scale 1 may differ at another scale."""
    return photo.grid, *(tuple(pixels.shape) for pixels in photo.inputs)


def by_photo(maps: NDArray[Value], photos: Sequence[Photo]) -> list[NDArray[Value]]:
    """The maps ``(K, ...)`` of each photo, of ``(T, ...)`` with T (photo, class) pairs, photo by photo."""
    counts = [len(photo.sample.labels) for photo in photos]
    return np.split(maps, np.cumsum(counts)[:-1])


def too_large(photo: Photo) -> ImageError:
    """The error that a photo does not fit into memory."""
    height, width = photo.size
    patches = max((h * w for h, w in photo.grids), default=photo.grid[0] * photo.grid[1])
    found = f"a photo of {width} x {height} with {patches:,} patches needs more memory than there is"
    return ImageError(found, "a smaller --long-side, fewer --workers, or another --device")


@dataclass(frozen=True)
class Crop:
    """One crop of a photo.

    Attributes:
        slot: Place in the batch of all processes; seeds whatever is drawn for this crop.
        photo: Resized for the encoders, with superpixels on the token grid.
        image: ``(3, S, S)`` fp32 RGB in [0, 255].
        valid: ``(S, S)`` bool: photo, not padding.
        target: ``(S, S)`` int64 ground truth, padding 255; None unless it was asked for.
    """

    slot: int
    photo: Photo
    image: Tensor
    valid: Tensor
    target: Tensor | None


class View(NamedTuple):
    """One pass over a photo.

    Attributes:
        scale: Index of the resolution factor, in the order of the option ``scales``.
        mirrored: The photo is mirrored left to right.
    """

    scale: int = 0
    mirrored: bool = False


def averaged_over_views(forward: Callable[[View], Tensor], scales: Sequence[float], flip: bool, grid: Grid) -> Tensor:
    """Mean of a result over resolutions and mirror images.

    Args:
        forward: From a view to maps ``(..., h', w')``, mirrored as the view is.
        scales: Resolution factors.
        flip: Average with the mirror images too.
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
    """``(..., h', w')`` -> ``(..., h, w)``, bilinear."""
    shape = (*maps.shape[:-2], *grid)
    if maps.numel() == 0:  # images without classes: torch refuses
        return maps.new_zeros(shape)
    return F.interpolate(maps.reshape(1, -1, *maps.shape[-2:]), size=grid, mode="bilinear").view(shape)
