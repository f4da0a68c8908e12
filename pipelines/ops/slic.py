"""SLIC superpixels; this runs in worker processes that never load torch."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import slic


def slic_superpixels(image: NDArray[np.uint8], segments: int, compactness: float, iterations: int) -> NDArray[np.uint16]:
    """Compute connected SLIC superpixels (Achanta et al., TPAMI 2012) in Lab colour.

    Args:
        image: ``(H, W, 3)`` RGB.
        segments: Number of superpixels to aim at; SLIC returns slightly fewer.
        compactness: Weight of place against colour.
        iterations: Number of rounds of its k-means.

    Returns:
        ``(H, W)`` contiguous ids from 0.
    """
    raw = slic(image, n_segments=segments, compactness=compactness, max_num_iter=iterations, start_label=0, channel_axis=-1)
    ids, compact = np.unique(raw, return_inverse=True)
    if len(ids) > np.iinfo(np.uint16).max:
        raise ValueError(f"{len(ids)} superpixels do not fit 16 bits")
    return cast("NDArray[np.uint16]", compact.reshape(raw.shape).astype(np.uint16))
