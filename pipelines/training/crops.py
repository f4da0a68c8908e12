"""Random crops: scaled, mirrored, padded; the same for equal seed, step and slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Window:
    """Where a crop lies in a scaled photo, and where in itself the photo ends.

    Attributes:
        box: ``(left, top, right, bottom)`` in pixels of the photo as it is, fractions allowed.
        size: ``(height, width)`` that the box is resized to; the rest of the crop is padding, at the right and below.
        mirrored: Left and right change places, padding too.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    mirrored: bool


def random_window(
    height: int, width: int, side: int, scales: tuple[float, float], flip: bool, draw: np.random.Generator
) -> Window:
    """Draw a scale, a place and whether to mirror.

    Args:
        height: Of the photo, pixels.
        width: Of the photo, pixels.
        side: Of the crop, pixels.
        scales: Smallest and largest resolution factor.
        flip: Mirror every other crop.
        draw: Source of chance.
    """
    scale = draw.uniform(*scales)
    scaled = max(1, round(height * scale)), max(1, round(width * scale))
    size = min(side, scaled[0]), min(side, scaled[1])
    top, left = (int(draw.integers(0, whole - part + 1)) for whole, part in zip(scaled, size, strict=True))
    y, x = height / scaled[0], width / scaled[1]
    box = (left * x, top * y, (left + size[1]) * x, (top + size[0]) * y)
    return Window(box, size, bool(draw.integers(2)) and flip)


def crop_photo(image: Image.Image, window: Window, side: int, fill: tuple[int, int, int]) -> Image.Image:
    """Cut a crop out of a photo, bilinearly.

    Args:
        image: RGB.
        window: Where.
        side: Of the crop, pixels.
        fill: Colour of the padding, RGB.

    Returns:
        RGB, ``side x side``.
    """
    crop = Image.new("RGB", (side, side), fill)
    crop.paste(_resized(image, window, Image.Resampling.BILINEAR))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.mirrored else crop


def crop_map(values: NDArray[np.integer], window: Window, side: int, fill: int) -> NDArray[np.int32]:
    """Cut the same out of a map of labels or superpixels, nearest neighbour.

    Args:
        values: ``(H, W)`` as the photo.
        window: Where.
        side: Of the crop, pixels.
        fill: Value of the padding.

    Returns:
        ``(side, side)`` int32.
    """
    crop = np.full((side, side), fill, dtype=np.int32)
    crop[: window.size[0], : window.size[1]] = np.asarray(
        _resized(Image.fromarray(values.astype(np.int32)), window, Image.Resampling.NEAREST)
    )
    return np.ascontiguousarray(crop[:, ::-1]) if window.mirrored else crop


def _resized(image: Image.Image, window: Window, resampling: Image.Resampling) -> Image.Image:
    return image.resize((window.size[1], window.size[0]), resampling, box=window.box)
