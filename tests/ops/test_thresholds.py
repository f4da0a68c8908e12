"""Thresholds: those of a search over all of them, a class's own where it has photos, and what is expected of them."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.ops.thresholds import FEW, best_threshold, calibrate, doubts, expected, quality


def f1(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    hits = sum(bool(label) for score, label in zip(scores, labels, strict=True) if score >= threshold)
    found = sum(score >= threshold for score in scores)
    return 2 * hits / (found + labels.sum()) if found + labels.sum() else 0.0


@pytest.mark.parametrize("seed", range(20))
def test_best_threshold_is_that_of_a_search(seed):
    rng = np.random.default_rng(seed)
    scores = rng.random(30).round(1 if seed % 2 else 4).astype(np.float32)  # with and without equal scores
    labels = rng.random(30) < scores
    labels[0] = True
    best = max(f1(scores, labels, threshold) for threshold in np.linspace(0, 1, 2001))
    assert f1(scores, labels, best_threshold(scores, labels)) == pytest.approx(best)


def test_own_threshold_weighs_as_its_class_has_photos():
    scores = np.zeros((40, 3), dtype=np.float32)
    labels = np.zeros((40, 3), dtype=np.bool_)
    scores[:20, 0], labels[:20, 0] = 0.8, True
    scores[:2, 1], labels[:2, 1] = 0.2, True
    shared = calibrate(scores, labels)
    assert len(set(shared.tolist())) == 1
    own = calibrate(scores, labels, own=True)
    first, second = best_threshold(scores[:, 0], labels[:, 0]), best_threshold(scores[:, 1], labels[:, 1])
    assert own[0] == pytest.approx((20 * first + FEW * shared[0]) / (20 + FEW))
    assert own[1] == pytest.approx((2 * second + FEW * shared[0]) / (2 + FEW))
    assert own[2] == shared[0]


def test_expectation_is_not_that_of_the_photos_that_were_fitted():
    """Scores that say nothing: a threshold a class fits the labels at hand, further ones not."""
    rng = np.random.default_rng(0)
    scores, labels = rng.random((40, 40)), rng.random((40, 40)) < 0.4
    fitted = quality(scores >= calibrate(scores, labels, own=True), labels)
    assert expected(scores, labels, own=True).f1 < fitted.f1 - 0.02


def test_few_labels_are_enough():
    scores, labels = np.array([[0.9, 0.1]]), np.array([[True, False]])
    assert expected(scores, labels).f1 == 1
    assert quality(np.zeros((2, 2), np.bool_), np.zeros((2, 2), np.bool_)) == (0, 0, 0)


def test_doubts_find_exchanged_labels_whatever_the_level_of_a_class():
    rng = np.random.default_rng(0)
    labels = rng.random((200, 4)) < 0.3
    level = np.array([0.9, 0.5, 0.2, 0.05])
    scores = np.where(labels, level, level / 10) * rng.uniform(0.7, 1, labels.shape)
    wrong = labels.copy()
    changed = rng.choice(labels.size, 12, replace=False)
    wrong.flat[changed] ^= True
    found = doubts(scores, wrong, calibrate(scores, wrong, own=True))
    order = np.argsort(-found, axis=None)
    assert set(order[:12].tolist()) == set(changed.tolist())
    assert (found.flat[order[:12]] > 0).all()
