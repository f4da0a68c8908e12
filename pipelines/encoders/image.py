"""Conversion of a decoded image to an encoder's input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def token_grid(height: int, width: int, patch_size: int, scale: float = 1.0) -> tuple[int, int]:
    """Return the grid of patch tokens that covers an image at native resolution.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        patch_size: Patch side in pixels.
        scale: Resolution factor.

    Returns:
        ``(h, w)``, each side rounded up to whole patches (CLIP-ES).
    """
    return max(1, math.ceil(height * scale / patch_size)), max(1, math.ceil(width * scale / patch_size))


def limited(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Return the image size scaled down to a long side of at most ``long_side`` pixels; 0 = any size."""
    longest = max(height, width)
    if not long_side or longest <= long_side:
        return height, width
    return max(1, round(height * long_side / longest)), max(1, round(width * long_side / longest))


def encoder_input(
    image: Image.Image, grid: tuple[int, int], patch_size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Resize an image to ``grid * patch_size`` (PIL, bicubic) and normalise it.

    Args:
        image: RGB image of any size.
        grid: ``(h, w)`` in patches.
        patch_size: Patch side in pixels.
        mean: Per-channel mean in [0, 1], RGB order.
        std: Per-channel standard deviation in [0, 1], RGB order.

    Returns:
        ``(3, h * patch_size, w * patch_size)`` fp32, RGB.
    """
    size = (grid[1] * patch_size, grid[0] * patch_size)
    resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    # in numpy, because many threads do this at once, and each would start torch's threads on all cores
    pixels = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)  # (3, H, W)
    normalised = (pixels - np.array(mean, np.float32).reshape(3, 1, 1)) / np.array(std, np.float32).reshape(3, 1, 1)
    return torch.from_numpy(np.ascontiguousarray(normalised))


def tensor_input(pixels: Tensor, grid: tuple[int, int], patch_size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Resize and normalise a tensor on its device like `encoder_input`, with torch's antialiased bicubic filter.

    Args:
        pixels: ``(3, H, W)`` fp32 RGB in [0, 1].
        grid: ``(h, w)`` in patches.
        patch_size: Patch side in pixels.
        mean: Per-channel mean in [0, 1], RGB order.
        std: Per-channel standard deviation in [0, 1], RGB order.

    Returns:
        ``(3, h * patch_size, w * patch_size)`` fp32, RGB.
    """
    size = (grid[0] * patch_size, grid[1] * patch_size)
    resized = F.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)  # (3, H', W')
    return (resized - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
