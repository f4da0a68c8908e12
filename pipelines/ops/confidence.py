"""Confidence in each class of a pseudo-mask without ground truth, from the agreement of CAM, refined CAM and mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.ops.label_map import with_background


def mask_confidence(
    cam: NDArray[np.floating], refined: NDArray[np.floating], mask: NDArray[np.uint8], labels: Sequence[int]
) -> list[float]:
    """Return the mean of four agreements in [0, 1] for each class of a mask.

    The agreements are the correlation of CAM and refined CAM; the overlap of the mask with each of the two, as shared sum over
    joined sum; and the lead of the class over the next one inside the mask, in shares of the scores. `docs/results.md` shows
    how well a low mean finds wrong masks.

    Args:
        cam: CAM on the token grid, ``(K, h, w)`` in [0, 1].
        refined: Refined CAM of the same shape.
        mask: ``(H, W)`` uint8, ``i + 1`` for class i.
        labels: The K class indices.

    Returns:
        K numbers in [0, 1]; low values are doubtful.
    """
    small = _on_grid(mask, refined.shape[1:])  # (h, w)
    cam, refined = cam.astype(np.float32), refined.astype(np.float32)
    scores = with_background(refined, 1.0)  # (K + 1, h, w)
    shares = scores / np.maximum(scores.sum(axis=0), np.finfo(np.float32).tiny)
    found = []
    for index, label in enumerate(labels):
        inside = small == label + 1  # (h, w)
        ahead = shares[index + 1] - np.delete(shares, index + 1, axis=0).max(axis=0)  # (h, w)
        agreements = (
            _correlation(cam[index], refined[index]),
            _overlap(refined[index], inside),
            _overlap(cam[index], inside),
            float(ahead[inside].mean()) if inside.any() else 0.0,
        )
        found.append(float(np.mean([max(0.0, value) for value in agreements])))
    return found


def _on_grid(mask: NDArray[np.uint8], grid: tuple[int, ...]) -> NDArray[np.uint8]:
    """Sample the mask at the middle of each cell of a grid."""
    rows, columns = ((2 * np.arange(cells) + 1) * side // (2 * cells) for cells, side in zip(grid, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    if one.min() == one.max() or other.min() == other.max():
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _overlap(map_: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    joined = np.maximum(map_, inside).sum()
    return float(np.minimum(map_, inside).sum() / joined) if joined else 0.0
