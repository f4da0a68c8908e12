"""One picture: a scene, clutter, one to four objects, and the mask that says where they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.sample.brush import Brush, shift
from pipelines.sample.canvas import Canvas, Frame, finish
from pipelines.sample.objects import COLOURS, OBJECTS, Rng
from pipelines.sample.scenes import SCENES

CLASSES = tuple(OBJECTS)
"""Class names in label order (alphabetic); label maps hold index + 1."""

MIN_VISIBLE = 0.006
"""Share of the picture that an object must show to count as present."""


@dataclass(frozen=True)
class Picture:
    """A drawn picture.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        mask: ``(H, W)`` uint8; 0 background, class index + 1.
        labels: Classes present, ascending.
        scene: Name of the scene.
        objects: Class and colour name of each visible object, back to front.
        boxes: Of each visible object, what shows of it: left, top, right, bottom as shares of width and height.
        clutter: Names of what else is there.
        things: ``(H, W)`` uint8; 0 the scene, and of each thing drawn upon it, object or clutter, a number of its own.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    labels: tuple[int, ...]
    scene: str
    objects: tuple[tuple[str, str], ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    clutter: tuple[str, ...]
    things: NDArray[np.uint8]


def draw_picture(rng: Rng, height: int, width: int, smallest: float = 0.13) -> Picture:
    """Draw until at least one object shows.

    Args:
        rng: Where all chance comes from.
        height: Pixels.
        width: Pixels.
        smallest: Size of the smallest object, as half of its extent over the picture's shorter side.

    Returns:
        The picture; equal generators give equal pictures.
    """
    while True:
        picture = _attempt(rng, height, width, smallest)
        if picture.labels:
            return picture


def _attempt(rng: Rng, height: int, width: int, smallest: float) -> Picture:
    scene = str(rng.choice(list(SCENES)))
    background, _, clutter_of = SCENES[scene]
    angle, lift = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.85)
    light = (float(np.cos(angle)) * (1 - lift**2) ** 0.5, -abs(float(np.sin(angle))) * (1 - lift**2) ** 0.5, lift)
    warmth = (1.0, float(rng.uniform(0.92, 1.0)), float(rng.uniform(0.85, 1.05)))
    canvas = Canvas(background(height, width, rng), light, warmth)
    clutter: list[str] = []
    things = np.zeros((height, width), np.uint8)
    for number in range(rng.integers(0, 4)):
        canvas.drawn = np.zeros((height, width), np.bool_)
        _add_clutter(canvas, rng, scene, clutter)
        things[canvas.drawn] = number + 1
    mask = np.zeros((height, width), np.uint8)
    owner = np.zeros((height, width), np.int32)
    found: list[tuple[str, str]] = []
    for name in _chosen_classes(rng, scene):
        painter, _, colours = OBJECTS[name]
        colour = str(rng.choice(list(colours)))
        tone = shift(COLOURS[colour], rng.uniform(-0.02, 0.02), rng.uniform(0.8, 1.1), rng.uniform(0.75, 1.15))
        canvas.drawn = np.zeros((height, width), np.bool_)
        painter(Brush(canvas, _frame(rng, height, width, smallest, owner)), rng, tone)
        found.append((name, colour))
        mask[canvas.drawn] = CLASSES.index(name) + 1
        owner[canvas.drawn] = len(found)
        things[canvas.drawn] = len(clutter) + len(found)
    canvas.drawn = np.zeros((height, width), np.bool_)
    if rng.random() < 0.3 and clutter_of:  # something in front
        _add_clutter(canvas, rng, scene, clutter, largest=0.2)
        mask[canvas.drawn] = 0
        owner[canvas.drawn] = 0
        things[canvas.drawn] = things.max() + 1
    shares = np.bincount(owner.ravel(), minlength=len(found) + 1)[1:] / owner.size
    for index, share in enumerate(shares):
        if share < MIN_VISIBLE:
            mask[owner == index + 1] = 0
    return Picture(
        image=finish(canvas, rng),
        mask=mask,
        labels=tuple(int(value) - 1 for value in np.unique(mask) if value),
        scene=scene,
        objects=tuple(entry for entry, share in zip(found, shares, strict=True) if share >= MIN_VISIBLE),
        boxes=tuple(_box(owner == index + 1) for index, share in enumerate(shares) if share >= MIN_VISIBLE),
        clutter=tuple(dict.fromkeys(clutter)),
        things=things,
    )


def _box(shown: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(shown.any(1))[0], np.nonzero(shown.any(0))[0]
    height, width = shown.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def _chosen_classes(rng: Rng, scene: str) -> list[str]:
    """One to three classes, most at home in the scene; some twice."""
    home = [name for name, (_, place, _) in OBJECTS.items() if place == scene]
    chosen: list[str] = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))):
        name = str(rng.choice(home if rng.random() < 0.75 else list(CLASSES)))
        if name not in chosen:
            chosen.append(name)
    return chosen + [name for name in chosen if rng.random() < 0.15]


def _frame(rng: Rng, height: int, width: int, smallest: float, owner: NDArray[np.int32]) -> Frame:
    """A place for the next object: of some tries the one that hides least."""
    side = min(height, width)
    size = side * float(np.exp(rng.uniform(np.log(smallest), np.log(0.5))))
    tries: list[tuple[float, Frame]] = []
    for _ in range(4):
        centre = (rng.uniform(0.12, 0.88) * width, rng.uniform(0.25, 0.85) * height)
        top, left = int(max(0, centre[1] - size * 0.7)), int(max(0, centre[0] - size * 0.8))
        hidden = float((owner[top : int(centre[1] + size * 0.7), left : int(centre[0] + size * 0.8)] > 0).mean())
        frame = Frame(
            centre,
            size,
            angle=float(rng.normal(0, 0.16)),
            mirror=bool(rng.random() < 0.5),
            stretch=float(np.exp(rng.normal(0, 0.08))),
            wobble=float(rng.uniform(0, 0.07)),
            phase=float(rng.uniform(0, 6.28)),
        )
        tries.append((hidden, frame))
    return min(tries, key=lambda entry: entry[0])[1]


def _add_clutter(canvas: Canvas, rng: Rng, scene: str, names: list[str], largest: float = 0.3) -> None:
    clutter = SCENES[scene][2]
    name = str(rng.choice(list(clutter)))
    height, width = canvas.size
    low, high = (0.05, 0.35) if name == "cloud" else (0.4, 0.95)
    frame = Frame(
        (rng.uniform(0, 1) * width, rng.uniform(low, high) * height),
        min(height, width) * float(rng.uniform(0.1, largest)),
        angle=float(rng.normal(0, 0.06)),
        mirror=bool(rng.random() < 0.5),
        phase=float(rng.uniform(0, 6.28)),
    )
    clutter[name](Brush(canvas, frame), rng)
    names.append(name)
