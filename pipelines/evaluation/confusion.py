"""Confusion counts, which all segmentation metrics are computed from.

Counts are int64, so the matrices of images and shards add with ``+`` in any order to the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def confusion_counts(
    prediction: NDArray[np.uint8], target: NDArray[np.uint8], classes: int, ignore_index: int = 255
) -> NDArray[np.int64]:
    """Count pixels by (target class, predicted class).

    Args:
        prediction: ``(H, W)`` uint8 label map, ``ignore_index`` where no class is predicted.
        target: ``(H, W)`` uint8 ground truth; pixels of ``ignore_index`` are left out.
        classes: Number of classes with background, at most ``ignore_index``.
        ignore_index: Value in both maps that is no class.

    Returns:
        ``(classes, classes + 1)`` int64. Row = target class, column = predicted class; last column = ``ignore_index``
        predicted.

    Raises:
        ValueError: Shapes or dtypes do not fit, or a value is neither a class nor ``ignore_index``.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target must have one shape, found {prediction.shape} and {target.shape}")
    if prediction.dtype != np.uint8 or target.dtype != np.uint8:
        raise ValueError(f"label maps must be uint8, found prediction {prediction.dtype} and target {target.dtype}")
    if not 0 < classes <= ignore_index <= 255:
        raise ValueError(
            f"expected 0 < classes <= ignore_index <= 255, found {classes} classes and ignore_index {ignore_index}"
        )
    # One pass counts all 256 x 256 pairs: it costs less than masking first, and the table also shows values out of range.
    code = (target.astype(np.uint16) << 8) | prediction
    pairs = np.bincount(code.ravel(), minlength=1 << 16).reshape(256, 256)  # (target, prediction)
    _refuse_unknown("target", pairs.sum(axis=1), classes, ignore_index)
    _refuse_unknown("prediction", pairs.sum(axis=0), classes, ignore_index)
    columns = [*range(classes), ignore_index]
    return pairs[:classes, columns].astype(np.int64, copy=False)


def _refuse_unknown(what: str, histogram: NDArray[np.int64], classes: int, ignore_index: int) -> None:
    values = np.flatnonzero(histogram)
    unknown = values[(values >= classes) & (values != ignore_index)]
    if unknown.size:
        value = int(unknown[0])
        raise ValueError(
            f"{what} has value {value} ({int(histogram[value])} pixels), expected 0..{classes - 1} or {ignore_index} (ignore)"
        )
