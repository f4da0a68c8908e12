"""Images scaled as mmsegmentation scales them, as inputs of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.errors import ImageError
from pipelines.method.evidence import Grid
from pipelines.method.photo import Photo

Resize = Callable[[NDArray[np.uint8], Grid], NDArray[np.uint8]]
"""Resizes ``(H, W, 3)`` uint8 to a size ``(h, w)``."""


def scaled_photo(
    sample: Sample, image: Image.Image, largest: tuple[int, int], scales: Sequence[float], resize: Resize
) -> Photo:
    """Scale a decoded image to the largest size allowed, times each of the scales.

    Args:
        sample: Names the image.
        image: RGB.
        largest: Largest (long side, short side) at scale 1.
        scales: Factors of ``largest``.
        resize: Bilinear resizing.

    Returns:
        Inputs ``(3, H', W')`` uint8 RGB, one per scale.

    Raises:
        ImageError: The image is too thin.
    """
    pixels = np.asarray(image)  # (H, W, 3)
    sizes = [_scaled(sample, image, largest, scale) for scale in (1.0, *scales)]
    inputs = (np.ascontiguousarray(resize(pixels, size).transpose(2, 0, 1)) for size in sizes[1:])  # (3, H', W') each
    tensors: tuple[Tensor, ...] = tuple(torch.from_numpy(one) for one in inputs)
    return Photo(sample, (image.height, image.width), sizes[0], tensors)


def _scaled(sample: Sample, image: Image.Image, largest: tuple[int, int], scale: float) -> Grid:
    """Return the size ``(h, w)`` of an image, rounded as mmcv rounds it."""
    long, short = (max(1, round(side * scale)) for side in largest)
    factor = min(long / max(image.size), short / min(image.size))
    if min(image.size) * factor < 1:
        raise ImageError(f"{sample.image_path} is {image.width} x {image.height}, too thin for the network")
    return int(image.height * factor + 0.5), int(image.width * factor + 0.5)
