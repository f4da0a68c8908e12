"""Random crops: inside the photo, photo and map alike, padded at the right and below."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.training.crops import Window, crop_map, crop_photo, random_window

SIZES = [(1, 1), (7, 300), (37, 51), (64, 96), (96, 64), (281, 500), (375, 500), (333, 217)]
CORNERS = np.array([[255 * (label >> bit & 1) for bit in range(3)] for label in range(8)], np.uint8)  # label -> RGB


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_windows_lie_inside_the_photo(height, width):
    image = noise(height, width)
    for seed in range(150):
        draw = np.random.default_rng(seed)
        low, high = sorted(draw.uniform(0.3, 2.5, 2))
        side = int(draw.integers(1, 12)) * 32
        window = random_window(height, width, side, (low, high), True, draw)
        left, top, right, bottom = window.box
        assert 0 <= left < right <= width * (1 + 1e-12)
        assert 0 <= top < bottom <= height * (1 + 1e-12)
        assert 1 <= min(window.size) <= max(window.size) <= side
        for extent, part, whole in ((bottom - top, window.size[0], height), (right - left, window.size[1], width)):
            scale = part / extent  # off the drawn one by rounding the scaled photo to whole pixels
            assert low - 0.51 / whole <= scale <= max(high, 1 / whole) + 0.51 / whole
            assert part == side or extent == pytest.approx(whole)
        if seed < 20:
            assert crop_photo(image, window, side, (0, 0, 0)).size == (side, side)  # Pillow refuses a box outside


def test_every_place_is_drawn():
    windows = [random_window(40, 50, 32, (1.0, 1.0), False, np.random.default_rng(seed)) for seed in range(400)]
    assert {window.box[0] for window in windows} == set(range(19))
    assert {window.box[1] for window in windows} == set(range(9))
    assert {window.size for window in windows} == {(32, 32)}


def test_scales_are_spread_over_their_range():
    windows = [random_window(100, 100, 1000, (0.5, 2.0), False, np.random.default_rng(seed)) for seed in range(600)]
    found = np.array([window.size[0] / 100 for window in windows])
    counts = np.histogram(found, bins=6, range=(0.5, 2.0))[0]
    assert counts.sum() == 600
    assert counts.min() > 60


def test_every_other_crop_is_mirrored_if_asked():
    for flip, share in ((True, 0.5), (False, 0.0)):
        windows = [random_window(40, 50, 32, (0.5, 2.0), flip, np.random.default_rng(seed)) for seed in range(500)]
        assert np.mean([window.mirrored for window in windows]) == pytest.approx(share, abs=0.1)


def test_equal_state_equal_window():
    first, second = (np.random.default_rng((3, 17, 2)) for _ in range(2))
    windows = [random_window(300, 400, 320, (0.5, 2.0), True, draw) for draw in (first, second)]
    assert windows[0] == windows[1]
    assert random_window(300, 400, 320, (0.5, 2.0), True, first) != windows[0]
    others = [random_window(300, 400, 320, (0.5, 2.0), True, np.random.default_rng((3, 17, place))) for place in (0, 1)]
    assert windows[0] not in others


def test_flip_moves_nothing_else():
    with_flip, without = (random_window(300, 400, 320, (0.5, 2.0), flip, np.random.default_rng(1)) for flip in (True, False))
    assert (with_flip.box, with_flip.size) == (without.box, without.size)


@pytest.mark.parametrize("mirrored", [False, True])
def test_whole_photo_at_its_own_size_is_the_photo(mirrored):
    image = noise(96, 96)
    labels = np.random.default_rng(1).integers(0, 60_000, (96, 96)).astype(np.uint16)
    drawn = random_window(96, 96, 96, (1.0, 1.0), False, np.random.default_rng(0))
    assert drawn == Window((0.0, 0.0, 96.0, 96.0), (96, 96), False)
    window = Window(drawn.box, drawn.size, mirrored)
    expected = np.asarray(image)[:, ::-1] if mirrored else np.asarray(image)
    assert crop_photo(image, window, 96, (1, 2, 3)).tobytes() == expected.tobytes()
    found = crop_map(labels, window, 96, 255)
    assert found.dtype == np.int32
    assert np.array_equal(found, labels[:, ::-1] if mirrored else labels)


def test_part_of_a_photo_at_its_own_size_is_that_part():
    image, labels = noise(50, 70), np.arange(3500).reshape(50, 70)
    window = Window((5.0, 9.0, 37.0, 41.0), (32, 32), False)
    assert np.array_equal(np.asarray(crop_photo(image, window, 32, (0, 0, 0))), np.asarray(image)[9:41, 5:37])
    assert np.array_equal(crop_map(labels, window, 32, 0), labels[9:41, 5:37])


@pytest.mark.parametrize("mirrored", [False, True])
def test_padding_lies_at_the_right_and_below_and_is_mirrored_too(mirrored):
    image, labels = noise(20, 40), np.full((20, 40), 7)
    window = random_window(20, 40, 64, (1.0, 1.0), False, np.random.default_rng(0))
    window = Window(window.box, window.size, mirrored)
    crop, cut = np.asarray(crop_photo(image, window, 64, (9, 8, 7))), crop_map(labels, window, 64, 255)
    expected_crop, expected_cut = np.full((64, 64, 3), (9, 8, 7), np.uint8), np.full((64, 64), 255)
    expected_crop[:20, :40], expected_cut[:20, :40] = np.asarray(image), 7
    if mirrored:
        expected_crop, expected_cut = expected_crop[:, ::-1], expected_cut[:, ::-1]
    assert np.array_equal(crop, expected_crop)
    assert np.array_equal(cut, expected_cut)


def disagreement(crop: np.ndarray, cut: np.ndarray) -> float:
    """Share of the pixels of one pure colour that the map calls something else."""
    pure = ((crop == 0) | (crop == 255)).all(axis=2)
    assert pure.mean() > 0.5
    return float((CORNERS[cut[pure]] != crop[pure]).any(axis=1).mean())


@pytest.mark.parametrize("seed", range(12))
def test_photo_and_map_are_cut_alike(seed):
    """Colour encodes the label; where a colour is not mixed, the map must say the same."""
    draw = np.random.default_rng(seed)
    labels = np.kron(draw.integers(1, 8, (9, 11)), np.ones((17, 19), np.int64))  # blocks
    image = Image.fromarray(CORNERS[labels])
    window = random_window(*labels.shape, 160, (0.5, 2.0), True, draw)
    crop, cut = np.asarray(crop_photo(image, window, 160, (0, 0, 0))), crop_map(labels, window, 160, 0)
    assert disagreement(crop, cut) == 0
    for moved in (np.roll(cut, 2, axis=0), np.roll(cut, -2, axis=1), cut[:, ::-1]):
        assert disagreement(crop, moved) > 0  # the comparison bites


def test_map_keeps_its_values():
    """Nearest neighbour: no label between two labels."""
    labels = np.random.default_rng(2).choice([0, 14, 255], (75, 100)).astype(np.uint8)
    for seed in range(30):
        window = random_window(75, 100, 96, (0.5, 2.0), True, np.random.default_rng(seed))
        assert set(np.unique(crop_map(labels, window, 96, 255))) <= {0, 14, 255}
