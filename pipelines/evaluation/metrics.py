"""Metrics from confusion counts. All values are fractions.

With TP, FP, FN of a class counted over all pixels of all images whose ground truth is not 255:

* IoU = TP / (TP + FP + FN); mIoU is the mean over the classes that have ground-truth pixels (VOC's rule).
* precision = TP / (TP + FP), recall = TP / (TP + FN), confusion ratio = FP / TP; each is a mean over the same classes without
  those where it is undefined: a class that is never predicted has no precision, and one without TP no confusion ratio.
* A predicted 255 is a miss of its pixel's class (FN there, FP nowhere). ``miou_covered`` leaves such pixels out instead, so
  that it must be read together with ``coverage``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SsrError


@dataclass(frozen=True)
class Metrics:
    """Metrics of an evaluation.

    Attributes:
        miou: Mean IoU over classes with ground-truth pixels; a predicted 255 is a miss.
        miou_covered: Mean IoU over the pixels where a class is predicted; None if there are no such pixels.
        pixel_accuracy: Share of ground-truth pixels whose class is predicted.
        precision: Mean over classes that have ground truth and are predicted; None if there are no such classes.
        recall: Mean over classes with ground-truth pixels.
        confusion_ratio: Mean of FP / TP over classes with a true positive; None if there are no such classes.
        classes_never_hit: Classes with ground truth and no true positive, which ``confusion_ratio`` leaves out.
        coverage: Share of ground-truth pixels where a class is predicted.
        per_class_iou: IoU by class name, in order of the classes; None if the class has no ground truth.
        per_class_precision: Precision by class name; None if the class has no ground truth or is never predicted.
        per_class_recall: Recall by class name; None if the class has no ground truth.
        per_class_pixels: Number of ground-truth pixels by class name.
    """

    miou: float
    miou_covered: float | None
    pixel_accuracy: float
    precision: float | None
    recall: float
    confusion_ratio: float | None
    classes_never_hit: int
    coverage: float
    per_class_iou: dict[str, float | None]
    per_class_precision: dict[str, float | None]
    per_class_recall: dict[str, float | None]
    per_class_pixels: dict[str, int]

    @property
    def summary(self) -> dict[str, Any]:
        """The metrics in a `pipelines.evaluation.report.Report`: all except the other values of each class."""
        other = ("per_class_precision", "per_class_recall", "per_class_pixels")
        return {name: value for name, value in vars(self).items() if name not in other}


def metrics_from_counts(counts: NDArray[np.int64], names: Sequence[str]) -> Metrics:
    """Compute all metrics from confusion counts.

    Args:
        counts: ``(C, C + 1)`` int64 of `confusion_counts`, summed over images.
        names: The C class names, background first.

    Raises:
        ValueError: Counts and names do not fit, or two classes have one name.
        SsrError: There is no ground-truth pixel to score.
    """
    classes = len(names)
    if counts.shape != (classes, classes + 1):
        raise ValueError(f"counts of {classes} classes must be {(classes, classes + 1)}, found {counts.shape}")
    if len(set(names)) != classes:
        raise ValueError(f"class names must differ, found {max(names, key=list(names).count)!r} twice")
    pixels = counts.sum(axis=1)  # (C,) TP + FN
    total = int(pixels.sum())
    if total == 0:
        raise SsrError("nothing to score: the ground truth has no pixel of any class", hint="check the split and its masks")
    covered = counts[:, :classes]  # (C, C)
    present = pixels > 0
    hits = covered.diagonal()  # (C,) TP
    predicted = covered.sum(axis=0)  # (C,) TP + FP

    iou = _ratio(hits, pixels + predicted - hits, present)
    precision = _ratio(hits, predicted, present)
    recall = _ratio(hits, pixels, present)
    covered_pixels = covered.sum(axis=1)  # (C,)
    iou_covered = _ratio(hits, covered_pixels + predicted - hits, covered_pixels > 0)
    return Metrics(
        miou=float(np.nanmean(iou)),
        miou_covered=_mean(iou_covered),
        pixel_accuracy=int(hits.sum()) / total,
        precision=_mean(precision),
        recall=float(np.nanmean(recall)),
        confusion_ratio=_mean(_ratio(predicted - hits, hits, present)),
        classes_never_hit=int((present & (hits == 0)).sum()),
        coverage=int(covered.sum()) / total,
        per_class_iou=_by_name(names, iou),
        per_class_precision=_by_name(names, precision),
        per_class_recall=_by_name(names, recall),
        per_class_pixels=dict(zip(names, pixels.tolist(), strict=True)),
    )


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the quotient of each class, NaN outside ``where`` and over zero."""
    quotient = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=where & (denominator > 0))
    return quotient


def _mean(values: NDArray[np.float64]) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _by_name(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}
