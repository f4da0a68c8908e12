from __future__ import annotations

import numpy as np
import pytest

from pipelines.sample.brush import Brush
from pipelines.sample.canvas import Canvas, Frame
from pipelines.sample.objects import COLOURS, OBJECTS
from pipelines.sample.picture import CLASSES, MIN_VISIBLE, draw_picture
from pipelines.sample.scenes import SCENES


def test_equal_generators_draw_equal_pictures() -> None:
    first, second, other = (draw_picture(np.random.default_rng(seed), 96, 120) for seed in (1, 1, 2))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("seed", range(12))
def test_labels_are_what_the_mask_shows(seed: int) -> None:
    picture = draw_picture(np.random.default_rng(seed), 80, 100)
    assert picture.image.shape == (80, 100, 3)
    assert picture.mask.shape == (80, 100)
    shown = set(np.unique(picture.mask)) - {0}
    assert shown == {label + 1 for label in picture.labels} != set()
    assert {CLASSES[label] for label in picture.labels} == {name for name, _ in picture.objects}
    for label in picture.labels:
        assert (picture.mask == label + 1).mean() >= MIN_VISIBLE
    for thing in np.unique(picture.things):  # things never cross the border of an object
        classes = np.unique(picture.mask[picture.things == thing])
        assert set(classes) <= {0} if thing == 0 else len(classes) == 1


@pytest.mark.parametrize("name", OBJECTS)
def test_every_class_fills_its_place_and_nothing_else(name: str) -> None:
    canvas = Canvas(np.full((120, 120, 3), 0.5, np.float32), (0, -0.6, 0.8), drawn=np.zeros((120, 120), bool))
    before = canvas.pixels.copy()
    painter, _, colours = OBJECTS[name]
    painter(Brush(canvas, Frame((60, 60), 40)), np.random.default_rng(0), COLOURS[colours[0]])
    assert canvas.drawn is not None
    assert 0.08 < canvas.drawn.mean() < 0.5
    assert np.abs(canvas.pixels - before)[canvas.drawn].mean() > 0.05
    assert np.isfinite(canvas.pixels).all()


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_off_the_picture_is_no_error(name: str) -> None:
    canvas = Canvas(np.zeros((40, 40, 3), np.float32), (0, -0.6, 0.8), drawn=np.zeros((40, 40), bool))
    OBJECTS[name][0](Brush(canvas, Frame((-500, 20), 10)), np.random.default_rng(0), COLOURS["red"])
    assert not canvas.pixels.any()


@pytest.mark.parametrize("scene", SCENES)
def test_every_scene_and_its_clutter_can_be_drawn(scene: str) -> None:
    background, word, clutter = SCENES[scene]
    assert word
    pixels = background(50, 70, np.random.default_rng(0))
    assert pixels.shape == (50, 70, 3)
    assert pixels.dtype == np.float32
    assert np.isfinite(pixels).all()
    for painter in clutter.values():
        canvas = Canvas(pixels.copy(), (0, -0.6, 0.8))
        painter(Brush(canvas, Frame((35, 25), 15)), np.random.default_rng(0))
        assert not np.array_equal(canvas.pixels, pixels)
