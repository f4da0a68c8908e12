"""Thresholds that turn scores of classes into labels, chosen for the highest F1 of all (image, class) pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEW = 10.0
"""Number of images of a class at which its own threshold has the same weight as that of all classes."""

FOLDS = 5


class Quality(NamedTuple):
    """Precision, recall and F1 of tags over (image, class) pairs, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


def label_table(labels: Sequence[Sequence[int]], classes: int) -> NDArray[np.bool_]:
    """Return whether each image has each class, ``(images, C)``, from the class indices of each image."""
    table = np.zeros((len(labels), classes), dtype=np.bool_)
    for row, own in zip(table, labels, strict=True):
        row[list(own)] = True
    return table


def quality(tags: NDArray[np.bool_], labels: NDArray[np.bool_]) -> Quality:
    """Compute precision, recall and F1 of tags against labels of the same shape; 0 where nothing can be counted."""
    hits, found, there = (int(pairs.sum()) for pairs in (tags & labels, tags, labels))
    return Quality(hits / max(found, 1), hits / max(there, 1), 2 * hits / max(found + there, 1))


def best_threshold(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Return the threshold with the highest F1, half way between the two scores that it separates.

    Args:
        scores: Scores in [0, 1], any shape.
        labels: Labels of the same shape; at least one is true.
    """
    order = np.argsort(-scores.ravel(), kind="stable")
    ranked = np.append(scores.ravel()[order].astype(np.float64), 0.0)  # (P + 1,)
    hits = np.cumsum(labels.ravel()[order])  # (P,)
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + labels.sum())
    f1[ranked[:-1] == ranked[1:]] = -1  # no threshold lies between equal scores
    last = int(f1.argmax())
    return float((ranked[last] + ranked[last + 1]) / 2)


def calibrate(scores: NDArray[np.floating], labels: NDArray[np.bool_], own: bool = False) -> NDArray[np.float64]:
    """Choose a threshold for each class.

    Args:
        scores: ``(images, C)`` in [0, 1].
        labels: ``(images, C)``; at least one is true.
        own: Whether a class has its own threshold, with weight n / (n + `FEW`) for n images of it; else all have the same.

    Returns:
        ``(C,)``.
    """
    of_all = best_threshold(scores, labels)
    thresholds = np.full(scores.shape[1], of_all)
    for index in np.flatnonzero(labels.any(axis=0)) if own else ():
        photos = labels[:, index].sum()
        weight = photos / (photos + FEW)
        thresholds[index] = weight * best_threshold(scores[:, index], labels[:, index]) + (1 - weight) * of_all
    return thresholds


def expected(scores: NDArray[np.floating], labels: NDArray[np.bool_], own: bool = False) -> Quality:
    """Estimate the quality of tags of further images: each fold is tagged with thresholds of the other folds.

    Args:
        scores: ``(images, C)``.
        labels: ``(images, C)``.
        own: As for `calibrate`.
    """
    tags = np.zeros_like(labels)
    fold = np.arange(len(scores)) % min(FOLDS, len(scores))
    for number in range(fold.max() + 1):
        others = fold != number
        chosen = labels[others].any() if others.any() else False
        thresholds = calibrate(scores[others], labels[others], own) if chosen else calibrate(scores, labels, own)
        tags[~others] = scores[~others] >= thresholds
    return quality(tags, labels)


def doubts(scores: NDArray[np.floating], labels: NDArray[np.bool_], thresholds: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how far the scores contradict each label and each missing label.

    The measure is the distance from the class's own threshold in log-odds, so that classes of low scores have equal weight.

    Args:
        scores: ``(images, C)`` in [0, 1].
        labels: ``(images, C)``; most are right.
        thresholds: Threshold of each class, ``(C,)`` in [0, 1].

    Returns:
        ``(images, C)``; positive where scores and labels disagree.
    """
    above = _log_odds(scores) - _log_odds(thresholds)  # (images, C)
    return np.where(labels, -above, above)


def _log_odds(values: NDArray[np.floating]) -> NDArray[np.float64]:
    shares = np.clip(values.astype(np.float64), 1e-4, 1 - 1e-4)
    odds: NDArray[np.float64] = np.log(shares / (1 - shares))
    return odds
