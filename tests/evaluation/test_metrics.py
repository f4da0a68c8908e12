from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.errors import SsrError
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.metrics import metrics_from_counts

IGNORE = 255


def slow_scores(prediction: NDArray[np.uint8], target: NDArray[np.uint8], classes: int) -> dict[str, float]:
    """From the pixels, class by class, without a confusion matrix."""
    kept = target != IGNORE
    ious, covered_ious, precisions, recalls, ratios = [], [], [], [], []
    for c in range(classes):
        truth, guess = (target == c) & kept, (prediction == c) & kept
        if not truth.any():
            continue
        tp, fp, fn = (truth & guess).sum(), (guess & ~truth).sum(), (truth & ~guess).sum()
        ious.append(tp / (tp + fp + fn))
        recalls.append(tp / (tp + fn))
        if guess.any():
            precisions.append(tp / (tp + fp))
        if tp:
            ratios.append(fp / tp)
        truth &= prediction != IGNORE
        if truth.any():
            covered_ious.append((truth & guess).sum() / (truth | guess).sum())
    return {
        "miou": float(np.mean(ious)),
        "miou_covered": float(np.mean(covered_ious)),
        "precision": float(np.mean(precisions)),
        "recall": float(np.mean(recalls)),
        "confusion_ratio": float(np.mean(ratios)),
        "pixel_accuracy": float((prediction == target)[kept].mean()),
        "coverage": float((prediction != IGNORE)[kept].mean()),
    }


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_scores_from_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.choice(np.array([0, 1, 2, 4, IGNORE], np.uint8), (12, 11))  # class 3 is absent
    noise = rng.choice(np.array([0, 1, 3, 4, IGNORE], np.uint8), target.shape)  # class 2 is rarely predicted
    prediction = np.where((rng.random(target.shape) < 0.6) & (target != 2), target, noise)
    metrics = metrics_from_counts(confusion_counts(prediction, target, 5), list("abcde"))
    for key, value in slow_scores(prediction, target, 5).items():
        assert getattr(metrics, key) == pytest.approx(value, abs=1e-12), key


def test_by_hand() -> None:
    counts = np.array(
        [
            [6, 2, 0, 0, 2],  # 10 background pixels: 6 hit, 2 taken for cat, 2 without a statement
            [1, 3, 0, 0, 0],
            [4, 0, 0, 0, 0],  # dog: never hit, never predicted
            [0, 0, 0, 0, 0],  # cow: not in the ground truth
        ]
    )
    metrics = metrics_from_counts(counts, ["background", "cat", "dog", "cow"])
    assert metrics.per_class_iou == {"background": 6 / 15, "cat": 3 / 6, "dog": 0, "cow": None}
    assert metrics.per_class_precision == {"background": 6 / 11, "cat": 3 / 5, "dog": None, "cow": None}
    assert metrics.per_class_recall == {"background": 6 / 10, "cat": 3 / 4, "dog": 0, "cow": None}
    assert metrics.per_class_pixels == {"background": 10, "cat": 4, "dog": 4, "cow": 0}
    assert metrics.miou == pytest.approx((0.4 + 0.5 + 0) / 3)
    assert metrics.miou_covered == pytest.approx((6 / 13 + 0.5 + 0) / 3)
    assert metrics.precision == pytest.approx((6 / 11 + 3 / 5) / 2)
    assert metrics.recall == pytest.approx((0.6 + 0.75 + 0) / 3)
    assert metrics.confusion_ratio == pytest.approx((5 / 6 + 2 / 3) / 2)
    assert metrics.classes_never_hit == 1
    assert metrics.pixel_accuracy == pytest.approx(9 / 18)
    assert metrics.coverage == pytest.approx(16 / 18)


def test_a_class_that_is_only_predicted_costs_its_victim_but_does_not_enter_the_mean() -> None:
    metrics = metrics_from_counts(np.array([[3, 1, 0], [0, 0, 0]]), ["background", "cat"])
    assert (metrics.miou, metrics.precision, metrics.confusion_ratio) == (0.75, 1.0, 0.0)
    assert metrics.per_class_iou["cat"] is None
    assert metrics.classes_never_hit == 0


def test_covered_leaves_out_a_class_without_covered_pixels() -> None:
    metrics = metrics_from_counts(np.array([[3, 1, 0], [0, 0, 4]]), ["background", "cat"])
    assert (metrics.miou_covered, metrics.miou) == (0.75, 0.375)


def test_nothing_predicted_anywhere() -> None:
    metrics = metrics_from_counts(np.array([[0, 0, 5], [0, 0, 5]]), ["background", "cat"])
    assert (metrics.miou, metrics.recall, metrics.pixel_accuracy, metrics.coverage) == (0, 0, 0, 0)
    assert (metrics.miou_covered, metrics.precision, metrics.confusion_ratio) == (None, None, None)
    assert metrics.classes_never_hit == 2


def test_large_counts_stay_exact() -> None:
    big = 2**53 + 1  # a float64 sum would lose the 1
    metrics = metrics_from_counts(np.array([[big, 0, 0], [1, big, 0]]), ["background", "cat"])
    assert metrics.per_class_pixels == {"background": big, "cat": big + 1}
    assert math.isclose(metrics.miou, 1)


@pytest.mark.parametrize(
    ("counts", "names", "error", "message"),
    [
        (np.zeros((2, 3), np.int64), ["background", "cat"], SsrError, "nothing to score"),
        (np.ones((2, 2), np.int64), ["background", "cat"], ValueError, r"must be \(2, 3\)"),
        (np.ones((2, 3), np.int64), ["cat", "cat"], ValueError, "'cat' twice"),
    ],
)
def test_refuses(counts: NDArray[np.int64], names: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        metrics_from_counts(counts, names)
