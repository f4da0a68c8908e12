"""Superpixels on the token grid."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def token_membership(superpixels: NDArray[np.integer], grid: tuple[int, int]) -> Tensor:
    """Compute how much of each token lies in each superpixel.

    Args:
        superpixels: ``(H, W)`` contiguous ids from 0, at the image's own size.
        grid: ``(h, w)`` of tokens over the same image.

    Returns:
        ``(S, N)`` fp32; column n holds the share of token n's pixels in each superpixel and sums to 1. A token that
        covers no pixel (an image smaller than its grid) takes the superpixel of the pixel nearest to its centre.
    """
    height, width = superpixels.shape
    rows = np.arange(height) * grid[0] // height  # (H,) token row of each pixel row
    columns = np.arange(width) * grid[1] // width  # (W,)
    token = rows[:, None] * grid[1] + columns[None]  # (H, W)
    count, total = int(superpixels.max()) + 1, grid[0] * grid[1]
    joint = np.bincount(superpixels.astype(np.int64).ravel() * total + token.ravel(), minlength=count * total)
    membership = joint.reshape(count, total).astype(np.float32)  # (S, N)
    empty = np.flatnonzero(membership.sum(axis=0) == 0)
    if empty.size:
        y = np.minimum(((empty // grid[1] + 0.5) * height / grid[0]).astype(int), height - 1)
        x = np.minimum(((empty % grid[1] + 0.5) * width / grid[1]).astype(int), width - 1)
        membership[superpixels[y, x], empty] = 1
    return torch.from_numpy(membership / membership.sum(axis=0, keepdims=True))


def mean_lab(image: NDArray[np.uint8], superpixels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the mean Lab colour of each superpixel.

    Args:
        image: ``(H, W, 3)`` RGB.
        superpixels: ``(H, W)`` contiguous ids from 0.

    Returns:
        ``(S, 3)``: L in [0, 100], a and b about [-100, 100].
    """
    from skimage.color import rgb2lab  # imported here, because the import takes longer than a finished stage

    ids = superpixels.astype(np.int64).ravel()
    channels = rgb2lab(image).reshape(-1, 3).T  # (3, H * W)
    area = np.bincount(ids)  # (S,)
    return np.stack([np.bincount(ids, weights=channel) / area for channel in channels], axis=1)
