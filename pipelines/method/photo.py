"""A decoded photo, and a crop of one, resized for the encoders."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.method.encoder_pair import Photo as PairPhoto

Grid = tuple[int, int]


@dataclass(frozen=True)
class Photo:
    """A decoded photo, resized for the encoder.

    Attributes:
        sample: Which photo.
        size: ``(H, W)`` of the file.
        grid: Token grid at scale 1.
        inputs: Encoder inputs ``(3, H', W')``, one a scale.
        memberships: Superpixels on each scale's grid, ``(S, N')``; empty if no option asks for them.
    """

    sample: Sample
    size: tuple[int, int]
    grid: Grid
    inputs: tuple[Tensor, ...]
    memberships: tuple[Tensor, ...] = ()


def shapes(photo: Photo) -> tuple[tuple[int, ...], ...]:
    """What photos of one batch share: equal grids at scale 1 may differ at another scale."""
    return photo.grid, *(tuple(pixels.shape) for pixels in photo.inputs)


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
    photo: PairPhoto
    image: Tensor
    valid: Tensor
    target: Tensor | None
