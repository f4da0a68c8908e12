from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.evaluation.confusion import confusion_counts


def slow_counts(prediction: NDArray[np.uint8], target: NDArray[np.uint8], classes: int, ignore: int) -> NDArray[np.int64]:
    counts = np.zeros((classes, classes + 1), np.int64)
    for p, t in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
        if t != ignore:
            counts[t, classes if p == ignore else p] += 1
    return counts


def random_map(seed: int, size: tuple[int, int], classes: int, ignore: int) -> NDArray[np.uint8]:
    values = np.array([*range(classes), ignore], np.uint8)
    return np.random.default_rng(seed).choice(values, size)


@pytest.mark.parametrize(
    ("size", "classes", "ignore"),
    [((7, 5), 2, 255), ((1, 1), 1, 255), ((40, 31), 21, 255), ((64, 64), 81, 255), ((33, 9), 255, 255), ((12, 8), 19, 19)],
)
def test_agrees_with_a_loop(size: tuple[int, int], classes: int, ignore: int) -> None:
    prediction, target = random_map(1, size, classes, ignore), random_map(2, size, classes, ignore)
    counts = confusion_counts(prediction, target, classes, ignore)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, slow_counts(prediction, target, classes, ignore))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([[0, 3]], [[0, 0]], r"prediction has value 3 \(1 pixels\), expected 0\.\.2 or 255"),
        ([[0, 3]], [[0, 255]], "prediction has value 3"),  # even where the ground truth says nothing
        ([[0, 0]], [[254, 254]], r"target has value 254 \(2 pixels\)"),
        ([[0]], [[0, 0]], "one shape"),
    ],
)
def test_refuses_what_is_no_class(prediction: list[list[int]], target: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_counts(np.array(prediction, np.uint8), np.array(target, np.uint8), 3)


@pytest.mark.parametrize("which", [0, 1])
def test_refuses_other_dtypes(which: int) -> None:
    maps = [np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8)]
    maps[which] = maps[which].astype(np.int64)
    with pytest.raises(ValueError, match="must be uint8"):
        confusion_counts(maps[0], maps[1], 2)


@pytest.mark.parametrize(("classes", "ignore"), [(0, 255), (256, 255), (5, 4), (2, 300)])
def test_refuses_an_ignore_index_among_the_classes(classes: int, ignore: int) -> None:
    with pytest.raises(ValueError, match="ignore_index"):
        confusion_counts(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), classes, ignore)
