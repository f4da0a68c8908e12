"""Scores and a label map at the image's size from CAMs on the token grid.

The functions run in worker processes that never load torch, so they use numpy, with Pillow's resampling as the bilinear filter
(half-pixel centres: the same as OpenCV's and as torch's ``align_corners=False``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IGNORE_INDEX = 255
SMALLEST_SHARE = 1e-6
"""Added to the probabilities of labels before they are divided, since half precision holds improbable classes as 0."""


def resize_maps(maps: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize each map bilinearly.

    Args:
        maps: ``(K, h, w)``.
        size: ``(H, W)``, not smaller than the grid (a smaller size would be filtered).

    Returns:
        ``(K, H, W)`` fp32.
    """
    out = np.empty((len(maps), *size), dtype=np.float32)
    for target, source in zip(out, maps, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(source, dtype=np.float32))
        target[:] = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return out


def with_background(cams: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """Put the background score ``(1 - max_c M_c) ** power`` before the classes (CLIP-ES).

    Args:
        cams: ``(K, H, W)`` in [0, 1]; K may be 0.
        power: Exponent; larger means less background.

    Returns:
        ``(K + 1, H, W)`` fp32 in [0, 1], background first. The scores do not sum to 1.
    """
    if len(cams) == 0:
        return np.ones((1, *cams.shape[1:]), dtype=np.float32)
    background = np.clip(1 - cams.max(axis=0), 0, 1) ** np.float32(power)
    return np.concatenate([background[None], cams]).astype(np.float32, copy=False)


def among_labels(probabilities: NDArray[np.floating], labels: Sequence[int]) -> NDArray[np.float32]:
    """Give the probability of all classes together to those that an image is known to have.

    The background keeps its probability. The rest is divided among the labels in proportion to their own probabilities, so that
    an object which a model takes for an absent class still counts as an object.

    Args:
        probabilities: ``(C + 1, h, w)`` in [0, 1], background first; they sum to 1.
        labels: The K class indices, 0-based without background.

    Returns:
        ``(K + 1, h, w)`` fp32, background first; they sum to 1 if there are labels.
    """
    values = probabilities[[0, *(index + 1 for index in labels)]].astype(np.float32)  # (K + 1, h, w)
    shares = values[1:] + SMALLEST_SHARE  # (K, h, w)
    values[1:] = (1 - values[0]) * shares / shares.sum(axis=0)
    return values


def mixed_scores(scores: NDArray[np.float32], probabilities: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """Mix the scores of CAMs with class probabilities.

    Args:
        scores: ``(K + 1, H, W)``, background first, non-negative; they need not sum to 1.
        probabilities: ``(K + 1, H, W)``, background first; they sum to 1.
        weight: Share of the probabilities, in [0, 1].

    Returns:
        ``(K + 1, H, W)`` fp32; they sum to 1.
    """
    shares = scores / np.maximum(scores.sum(axis=0), np.finfo(np.float32).tiny)
    mixed: NDArray[np.float32] = np.float32(1 - weight) * shares + np.float32(weight) * probabilities
    return mixed


def agreement(scores: NDArray[np.float32], probabilities: NDArray[np.float32]) -> float:
    """Measure how far two sets of scores give the same label map: the mean intersection over union of the labels.

    Args:
        scores: ``(K + 1, h, w)``, background first.
        probabilities: ``(K + 1, h, w)``, background first.

    Returns:
        Mean over the K labels, in [0, 1]; a label that neither gives a pixel counts as 0, and so does an image without labels.
    """
    first, second = scores.argmax(axis=0), probabilities.argmax(axis=0)  # (h, w)
    masks = [(first == row, second == row) for row in range(1, len(scores))]
    return float(np.mean([(one & two).sum() / max((one | two).sum(), 1) for one, two in masks])) if masks else 0.0


def label_map(scores: NDArray[np.float32], labels: tuple[int, ...], min_confidence: float = 0.0) -> NDArray[np.uint8]:
    """Return the class of the highest score at each pixel.

    Args:
        scores: ``(K + 1, H, W)``, background first, non-negative.
        labels: The K class indices of the other rows, 0-based without background.
        min_confidence: Pixels whose highest share of the scores' sum is lower become 255. 0 keeps all.

    Returns:
        ``(H, W)`` uint8: 0 background, ``i + 1`` for class i, 255 ignored.
    """
    values = np.array([0, *(index + 1 for index in labels)], dtype=np.uint8)
    result = values[scores.argmax(axis=0)]  # (H, W)
    if min_confidence > 0:
        confidence = scores.max(axis=0) / np.maximum(scores.sum(axis=0), np.finfo(np.float32).tiny)
        result[confidence < min_confidence] = IGNORE_INDEX
    return cast("NDArray[np.uint8]", result)
