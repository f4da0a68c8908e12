"""Box mask of CLIP-ES: it keeps source patches inside the boxes around regions of high activation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def box_mask(cam: Tensor, grid: tuple[int, int], threshold: float) -> Tensor:
    """Return the union of the bounding boxes of all regions above a share of the maximum (CLIP-ES, section 3.4).

    Args:
        cam: ``(K, N)`` in [0, 1].
        grid: ``(h, w)`` with ``h * w == N``.
        threshold: Share of the map's maximum: 0.4 for VOC, 0.7 for COCO in CLIP-ES.

    Returns:
        ``(K, N)`` bool. An all-zero map gives an empty mask. The last row and column are never inside a box, because
        CLIP-ES clips its exclusive end to ``size - 1``.
    """
    from skimage.measure import label, regionprops  # imported here, because the import takes longer than a finished stage

    height, width = grid
    levels = (cam.detach().cpu().numpy() * 255).astype(np.uint8).reshape(-1, height, width)  # (K, h, w)
    mask = np.zeros(levels.shape, dtype=bool)
    for inside, level in zip(mask, levels, strict=True):
        strong = label(level > int(threshold * level.max()), connectivity=2)  # type: ignore[no-untyped-call]
        for region in regionprops(strong):  # type: ignore[no-untyped-call]
            top, left, bottom, right = region.bbox  # the ends are exclusive
            inside[top : min(bottom, height - 1), left : min(right, width - 1)] = True
    return torch.from_numpy(mask.reshape(cam.shape)).to(cam.device)
