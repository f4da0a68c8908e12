from __future__ import annotations

import numpy as np

from pipelines.sample.canvas import Canvas, Frame, Material, finish, noise, noise_tile
from pipelines.sample.shapes import ellipse

GREY = Material((0.5, 0.5, 0.5), bevel=0.5, gloss=0.0, grain=0.0)


def canvas(height: int = 40, width: int = 60) -> Canvas:
    return Canvas(np.zeros((height, width, 3), np.float32), (0.0, -0.6, 0.8), drawn=np.zeros((height, width), bool))


def ball(target: Canvas, frame: Frame, material: Material = GREY) -> None:
    window = target.window(frame, 1.2)
    assert window is not None
    rows, columns = np.mgrid[window].astype(np.float32)
    x, y = frame.local(columns, rows)
    target.paint(window, ellipse(x, y, (0, 0), (1, 1)), 1 / frame.size, material)


def test_paint_marks_what_it_covers() -> None:
    target = canvas()
    ball(target, Frame((30, 20), 10))
    rows, columns = np.mgrid[:40, :60]
    distance = np.hypot(columns - 30, rows - 20)
    assert target.drawn is not None
    assert target.drawn[distance < 9.4].all()
    assert not target.drawn[distance > 10.6].any()
    assert (target.pixels[distance < 9] > 0).all()
    assert not target.pixels[distance > 11.5].any()


def test_light_from_above_makes_the_upper_half_brighter() -> None:
    target = canvas()
    ball(target, Frame((30, 20), 12))
    assert target.pixels[10:15, 27:34].mean() > 1.2 * target.pixels[26:31, 27:34].mean()


def test_frame_turns_mirrors_and_scales() -> None:
    columns, rows = np.float32([[20.0]]), np.float32([[10.0]])
    assert np.allclose(Frame((10, 10), 5).local(columns, rows), [[[2.0]], [[0.0]]])
    assert np.allclose(Frame((10, 10), 5, mirror=True).local(columns, rows), [[[-2.0]], [[0.0]]])
    turned = Frame((10, 10), 5, angle=np.pi / 2).local(columns, rows)
    assert np.allclose(turned, [[[0.0]], [[-2.0]]], atol=1e-6)


def test_window_is_none_off_the_canvas() -> None:
    assert canvas().window(Frame((-100, 20), 10), 1.2) is None
    assert canvas().window(Frame((0, 0), 10), 1.2) == (slice(0, 15), slice(0, 15))


def test_noise_repeats_and_has_no_seam() -> None:
    tile = noise_tile(np.random.default_rng(3))
    assert tile.shape == (256, 256)
    assert np.abs(tile).max() == 1
    steps = np.abs(np.diff(tile, axis=1)).mean()
    assert np.abs(tile[:, 0] - tile[:, -1]).mean() < 2 * steps, "the border continues"
    x = np.linspace(0, 1, 50, dtype=np.float32)[None]
    assert np.array_equal(noise(x, np.zeros_like(x), 0.5), noise(x + 2, np.zeros_like(x), 0.5))


def test_finish_is_the_same_for_equal_generators() -> None:
    target = canvas()
    ball(target, Frame((30, 20), 10))
    first, second = (finish(target, np.random.default_rng(5)) for _ in range(2))
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
