"""The box mask of CLIP-ES: source patches inside the boxes around a CAM's strong regions."""

from __future__ import annotations

import numpy as np
import torch
from skimage.measure import label, regionprops
from torch import Tensor


def box_mask(cam: Tensor, grid: tuple[int, int], threshold: float, keep_last: bool = False) -> Tensor:
    """Union of the bounding boxes of all regions above a share of the maximum (CLIP-ES, section 3.4).

    Args:
        cam: ``(K, N)`` in [0, 1].
        grid: ``(h, w)`` with ``h * w == N``.
        threshold: Share of the map's maximum: 0.4 for VOC, 0.7 for COCO in CLIP-ES.
        keep_last: Let a box reach the last row and column. CLIP-ES clips a box's exclusive end to ``size - 1``, so
            that they can never be inside; False does the same.

    Returns:
        ``(K, N)`` bool. An all-zero map gives an empty mask.
    """
    height, width = grid
    last = 0 if keep_last else 1
    levels = (cam.detach().cpu().numpy() * 255).astype(np.uint8).reshape(-1, height, width)  # (K, h, w)
    mask = np.zeros(levels.shape, dtype=bool)
    for inside, level in zip(mask, levels, strict=True):
        strong = label(level > int(threshold * level.max()), connectivity=2)  # type: ignore[no-untyped-call]
        for region in regionprops(strong):  # type: ignore[no-untyped-call]
            top, left, bottom, right = region.bbox  # ends exclusive
            inside[top : min(bottom, height - last), left : min(right, width - last)] = True
    return torch.from_numpy(mask.reshape(cam.shape)).to(cam.device)
