"""Random crops, which are scaled, mirrored and padded. Equal seed, step and slot give equal crops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Window:
    """The place of a crop in a scaled image, and the end of the image in the crop.

    Attributes:
        box: ``(left, top, right, bottom)`` in pixels of the original image; fractions are allowed.
        size: ``(height, width)`` that the box is resized to; the rest of the crop is padding, at the right and below.
        mirrored: Whether left and right are swapped, padding included.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    mirrored: bool


def random_window(
    height: int, width: int, side: int, scales: tuple[float, float], flip: bool, draw: np.random.Generator
) -> Window:
    """Draw a scale, a place and whether to mirror, at random.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        side: Side of the crop, pixels.
        scales: Smallest and largest resolution factor.
        flip: Whether half of the crops are mirrored.
        draw: Random number generator.
    """
    scale = draw.uniform(*scales)
    scaled = max(1, round(height * scale)), max(1, round(width * scale))
    size = min(side, scaled[0]), min(side, scaled[1])
    top, left = (int(draw.integers(0, whole - part + 1)) for whole, part in zip(scaled, size, strict=True))
    y, x = height / scaled[0], width / scaled[1]
    box = (left * x, top * y, (left + size[1]) * x, (top + size[0]) * y)
    return Window(box, size, bool(draw.integers(2)) and flip)


def crop_photo(image: Image.Image, window: Window, side: int, fill: tuple[int, int, int]) -> Image.Image:
    """Cut a crop out of an image, bilinearly.

    Args:
        image: RGB.
        window: Place of the crop.
        side: Side of the crop, pixels.
        fill: Colour of the padding, RGB.

    Returns:
        RGB, ``side x side``.
    """
    crop = Image.new("RGB", (side, side), fill)
    crop.paste(_resized(image, window, Image.Resampling.BILINEAR))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.mirrored else crop


def crop_map(values: NDArray[np.integer], window: Window, side: int, fill: int) -> NDArray[np.int32]:
    """Cut the same crop out of a map of labels or superpixels, by nearest neighbour.

    Args:
        values: ``(H, W)``, the size of the image.
        window: Place of the crop.
        side: Side of the crop, pixels.
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
