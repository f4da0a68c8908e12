from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ops.label_map import agreement, among_labels, label_map, mixed_scores, resize_maps, with_background


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 30), st.integers(0, 30), st.integers(0, 1000))
def test_resize_same_as_half_pixel_bilinear(h: int, w: int, more_rows: int, more_columns: int, seed: int) -> None:
    maps = np.random.default_rng(seed).random((2, h, w), np.float32)
    size = (h + more_rows, w + more_columns)
    expected = F.interpolate(torch.from_numpy(maps)[None], size=size, mode="bilinear", align_corners=False)[0].numpy()
    actual = resize_maps(maps, size)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_resize_takes_half_precision_and_no_maps() -> None:
    assert resize_maps(np.ones((1, 2, 2), np.float16), (5, 6)).tolist() == np.ones((1, 5, 6)).tolist()
    assert resize_maps(np.ones((0, 2, 2), np.float32), (5, 6)).shape == (0, 5, 6)


def test_background_is_what_the_strongest_class_leaves() -> None:
    cams = np.array([[[0.0, 0.5, 1.0]], [[0.2, 0.1, 0.3]]], np.float32)
    scores = with_background(cams, 2.0)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[0], [[0.64, 0.25, 0]], rtol=1e-6)
    assert np.array_equal(scores[1:], cams)
    assert np.array_equal(with_background(cams * np.float32(1.000001), 0.5)[0, 0, 2:], [0])  # above 1 by rounding: no NaN


def test_background_without_classes() -> None:
    scores = with_background(np.zeros((0, 2, 3), np.float32), 4.0)
    assert scores.dtype == np.float32
    assert scores.tolist() == np.ones((1, 2, 3)).tolist()
    assert label_map(scores, (), 0.5).tolist() == [[0] * 3] * 2


@pytest.mark.parametrize(
    ("scores", "min_confidence", "expected"),
    [
        ([0.2, 0.7, 0.1], 0.0, 5),
        ([0.5, 0.1, 0.4], 0.0, 0),
        ([0.1, 0.2, 0.3], 0.0, 20),
        ([0.2, 0.7, 0.1], 0.71, 255),
        ([0.2, 0.7, 0.1], 0.69, 5),
        ([0.4, 1.4, 0.2], 0.71, 255),  # a share of the sum, whatever the sum
        ([0.25, 0.5, 0.25], 0.5, 5),  # not below
        ([0.9, 0.05, 0.05], 0.95, 255),  # the background too
        ([0.0, 0.0, 0.0], 0.0, 0),
        ([0.0, 0.0, 0.0], 0.1, 255),
    ],
)
def test_label_map(scores: list[float], min_confidence: float, expected: int) -> None:
    result = label_map(np.array(scores, np.float32).reshape(3, 1, 1), (4, 19), min_confidence)
    assert result.dtype == np.uint8
    assert result.tolist() == [[expected]]


@given(st.integers(0, 4), st.integers(0, 1000))
def test_label_map_same_as_one_pixel_at_a_time(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = tuple(sorted(int(i) for i in rng.choice(90, count, replace=False)))
    scores = rng.random((count + 1, 3, 4), np.float32)
    result = label_map(scores, labels, 0.4)
    for y in range(3):
        for x in range(4):
            best = max(range(count + 1), key=lambda c: scores[c, y, x])
            sure = scores[best, y, x] / scores[:, y, x].sum() >= 0.4
            assert result[y, x] == ([0, *(i + 1 for i in labels)][best] if sure else 255)


@given(st.integers(1, 4), st.floats(0, 1), st.integers(0, 1000))
def test_probabilities_of_labels_same_as_one_pixel_at_a_time(count: int, weight: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = tuple(sorted(int(i) for i in rng.choice(6, count, replace=False)))
    model = rng.dirichlet([0.1] * 7, (2, 3)).transpose(2, 0, 1).astype(np.float16)  # (C + 1, h, w), many of them 0
    known = among_labels(model, labels)
    scores = rng.random((count + 1, 2, 3), np.float32)
    mixed = mixed_scores(scores, known, weight)
    for y in range(2):
        for x in range(3):
            of_labels = [float(model[label + 1, y, x]) + 1e-6 for label in labels]
            foreground = 1 - float(model[0, y, x])
            expected = [1 - foreground, *(foreground * value / sum(of_labels) for value in of_labels)]
            np.testing.assert_allclose(known[:, y, x], expected, atol=1e-5)
            shares = scores[:, y, x] / scores[:, y, x].sum()
            np.testing.assert_allclose(mixed[:, y, x], (1 - weight) * shares + weight * np.array(expected), atol=1e-5)


@given(st.integers(1, 4), st.integers(0, 1000))
def test_agreement_same_as_sets_of_pixels(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, probabilities = rng.random((2, count + 1, 2, 3), np.float32)
    masks: list[list[set[tuple[int, int]]]] = []
    for one in (scores, probabilities):
        masks.append([set() for _ in range(count + 1)])
        for y in range(2):
            for x in range(3):
                masks[-1][max(range(count + 1), key=lambda row: one[row, y, x])].add((y, x))
    ious = [len(a & b) / len(a | b) if a | b else 0.0 for a, b in zip(masks[0][1:], masks[1][1:], strict=True)]
    assert agreement(scores, probabilities) == pytest.approx(sum(ious) / count)
    assert agreement(scores[:1], probabilities[:1]) == 0  # an image without labels


def test_an_object_of_an_absent_class_counts_as_the_label() -> None:
    model = np.array([0.1, 0.9, 0.0], np.float16).reshape(3, 1, 1)  # background, a dog, no cow
    np.testing.assert_allclose(among_labels(model, (1,)).ravel(), [0.1, 0.9], atol=1e-3)
    np.testing.assert_allclose(among_labels(model, (0, 1)).ravel(), [0.1, 0.9, 0.0], atol=1e-3)
    assert among_labels(model, ()).shape == (1, 1, 1)
