"""Thresholds that turn scores of classes into labels, chosen where the F1 of all (photo, class) pairs is highest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEW = 10.0
"""Photos of a class at which its own threshold weighs as much as that of all classes."""

FOLDS = 5


class Quality(NamedTuple):
    """Shares in [0, 1] of (photo, class) pairs: tags that are true, true labels that are tags, and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def label_table(labels: Sequence[Sequence[int]], classes: int) -> NDArray[np.bool_]:
    """Whether each photo has each class, ``(photos, C)``, from the class indices of each photo."""
    table = np.zeros((len(labels), classes), dtype=np.bool_)
    for row, own in zip(table, labels, strict=True):
        row[list(own)] = True
    return table


def quality(tags: NDArray[np.bool_], labels: NDArray[np.bool_]) -> Quality:
    """Precision, recall and F1 of tags against labels of the same shape; 0 where there is nothing to count."""
    hits, found, there = (int(pairs.sum()) for pairs in (tags & labels, tags, labels))
    return Quality(hits / max(found, 1), hits / max(there, 1), 2 * hits / max(found + there, 1))


def best_threshold(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """The threshold with the highest F1, half way between the two scores that it separates.

    Args:
        scores: In [0, 1], any shape.
        labels: The same shape; at least one is true.
    """
    order = np.argsort(-scores.ravel(), kind="stable")
    ranked = np.append(scores.ravel()[order].astype(np.float64), 0.0)  # (P + 1,)
    hits = np.cumsum(labels.ravel()[order])  # (P,)
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + labels.sum())
    f1[ranked[:-1] == ranked[1:]] = -1  # equal scores stay together
    last = int(f1.argmax())
    return float((ranked[last] + ranked[last + 1]) / 2)


def calibrate(scores: NDArray[np.floating], labels: NDArray[np.bool_], own: bool = False) -> NDArray[np.float64]:
    """A threshold for each class.

    Args:
        scores: ``(photos, C)`` in [0, 1].
        labels: ``(photos, C)``; at least one is true.
        own: A class's own threshold, with weight n / (n + `FEW`) for n photos of it; otherwise all classes have the same.

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
    """What tags of further photos can be expected to be worth: each fold of the photos is tagged with thresholds of the others.

    Args:
        scores: ``(photos, C)``.
        labels: ``(photos, C)``.
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
    """How much the scores speak against each label, and for each class that is no label.

    The measure is the distance from the class's own threshold in log-odds, so that classes of low scores count as others do.

    Args:
        scores: ``(photos, C)`` in [0, 1].
        labels: ``(photos, C)``, of which most are right.
        thresholds: Of each class, ``(C,)`` in [0, 1].

    Returns:
        ``(photos, C)``; positive where scores and labels disagree.
    """
    above = _log_odds(scores) - _log_odds(thresholds)  # (photos, C)
    return np.where(labels, -above, above)


def _log_odds(values: NDArray[np.floating]) -> NDArray[np.float64]:
    shares = np.clip(values.astype(np.float64), 1e-4, 1 - 1e-4)
    odds: NDArray[np.float64] = np.log(shares / (1 - shares))
    return odds
