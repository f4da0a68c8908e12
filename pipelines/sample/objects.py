"""The ten classes. Each is drawn in its own coordinates, about [-1, 1], y downwards, standing on y = 0.65 where it stands.

Classes share what a network would like to tell them apart by: car and bus have the same paint, windows and wheels, balloon and
apple the same gloss and colours, sheep look like clouds and pale bushes, boat and duck meet only water.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipelines.sample.brush import Brush, Texture, bands, checks, dots, recoloured, shift
from pipelines.sample.canvas import Colour, Material, noise
from pipelines.sample.shapes import blend, box, capsule, ellipse, intersection, polygon, ring, union

Rng = np.random.Generator

COLOURS: dict[str, Colour] = {
    "red": (0.82, 0.13, 0.12),
    "blue": (0.14, 0.32, 0.74),
    "green": (0.22, 0.58, 0.22),
    "yellow": (0.93, 0.76, 0.16),
    "orange": (0.93, 0.47, 0.10),
    "purple": (0.50, 0.25, 0.62),
    "white": (0.92, 0.91, 0.87),
    "brown": (0.46, 0.29, 0.17),
}

RUBBER = Material((0.10, 0.10, 0.11), bevel=0.12, gloss=0.1)
CHROME = Material((0.72, 0.73, 0.76), bevel=0.06, gloss=0.4)
GLASS = Material((0.52, 0.68, 0.78), bevel=0.05, gloss=0.5, grain=0.05)
WOOD = Material((0.48, 0.32, 0.19), bevel=0.06, gloss=0.05, grain=0.3)
BLACK = Material((0.06, 0.05, 0.05), bevel=0.05, gloss=0.6, grain=0.0)


def _wheels(b: Brush, places: tuple[float, ...], y: float, radius: float) -> None:
    for x in places:
        b.fill(ellipse(b.x, b.y, (x, y), (radius, radius)), RUBBER)
        b.fill(ellipse(b.x, b.y, (x, y), (radius * 0.5, radius * 0.5)), CHROME)


def car(b: Brush, rng: Rng, colour: Colour) -> None:
    """Low, with a cabin."""
    paint = Material(colour, bevel=0.16, gloss=0.45, grain=0.05)
    top = rng.uniform(-0.42, -0.3)
    body = box(b.x, b.y, (0, 0.22), (0.98, 0.24), 0.14)
    cabin = polygon(b.x, b.y, [(-0.62, 0.05), (-0.4, top), (0.28, top), (0.6, 0.05)], 0.05)
    b.shadow(ellipse(b.x, b.y, (0, 0.66), (1.05, 0.1)))
    b.fill(blend(body, cabin, 0.06), paint)
    for corners in (
        [(-0.5, 0.0), (-0.34, top + 0.06), (-0.08, top + 0.06), (-0.08, 0.0)],
        [(0.0, 0.0), (0.0, top + 0.06), (0.22, top + 0.06), (0.47, 0.0)],
    ):
        b.fill(polygon(b.x, b.y, corners), GLASS)
    b.fill(box(b.x, b.y, (0, 0.3), (0.97, 0.02)), recoloured(paint, shift(colour, value=0.6)))
    b.fill(ellipse(b.x, b.y, (0.9, 0.17), (0.07, 0.08)), Material((1.0, 0.95, 0.7), bevel=0.05, gloss=0.5))
    _wheels(b, (-0.55, 0.55), 0.45, rng.uniform(0.19, 0.23))


def bus(b: Brush, rng: Rng, colour: Colour) -> None:
    """High, with a row of windows."""
    paint = Material(colour, bevel=0.12, gloss=0.4, grain=0.05)
    decks = 2 if rng.random() < 0.35 else 1
    top = -0.75 if decks == 2 else -0.38
    b.shadow(ellipse(b.x, b.y, (0, 0.66), (1.1, 0.09)))
    b.fill(box(b.x, b.y, (0, (0.48 + top) / 2), (1.05, (0.48 - top) / 2), 0.1), paint)
    for deck in range(decks):
        for x in np.linspace(-0.82, 0.82, 5):
            b.fill(box(b.x, b.y, (float(x), top + 0.26 + 0.42 * deck), (0.15, 0.14), 0.03), GLASS)
    stripe = shift(colour, value=0.55) if rng.random() < 0.5 else COLOURS["white"]
    b.fill(box(b.x, b.y, (0, 0.2), (1.04, 0.05)), recoloured(paint, stripe))
    _wheels(b, (-0.62, 0.62), 0.47, 0.2)


def boat(b: Brush, rng: Rng, colour: Colour) -> None:
    """A hull, with sails or a cabin."""
    b.shadow(ellipse(b.x, b.y, (0, 0.62), (0.95, 0.1)), 0.05, 0.35)
    if rng.random() < 0.7:
        b.fill(capsule(b.x, b.y, (0, 0.2), (0, -1.0), 0.03), WOOD)
        sail = Material((0.94, 0.92, 0.85), bevel=0.5, gloss=0.05)
        striped = bands(b.y + 0.1 * b.x, (sail.colour, colour), rng.uniform(0.2, 0.4)) if rng.random() < 0.5 else None
        b.fill(polygon(b.x, b.y, [(0.06, -0.95), (0.06, 0.08), (rng.uniform(0.6, 0.85), 0.08)]), sail, striped)
        b.fill(polygon(b.x, b.y, [(-0.06, -0.8), (-0.06, 0.08), (-rng.uniform(0.4, 0.6), 0.08)]), sail)
    else:
        cabin = Material(COLOURS["white"], bevel=0.08, gloss=0.2)
        b.fill(box(b.x, b.y, (-0.15, -0.05), (0.4, 0.22), 0.05), cabin)
        for x in (-0.35, -0.05):
            b.fill(box(b.x, b.y, (x, -0.06), (0.1, 0.09), 0.02), GLASS)
        b.fill(capsule(b.x, b.y, (-0.3, -0.25), (-0.3, -0.6), 0.05), recoloured(cabin, shift(colour, value=0.7)))
    hull = polygon(b.x, b.y, [(-0.92, 0.12), (0.95, 0.12), (0.66, 0.6), (-0.68, 0.6)], 0.03)
    b.fill(hull, Material(colour, bevel=0.2, gloss=0.25))
    b.fill(intersection(hull, box(b.x, b.y, (0, 0.22), (1.1, 0.035))), Material(COLOURS["white"], bevel=0.1))


def duck(b: Brush, rng: Rng, colour: Colour) -> None:
    """Body, neck, beak, wing."""
    feather = Material(colour, bevel=0.4, gloss=0.05, grain=0.2)
    b.shadow(ellipse(b.x, b.y, (0, 0.6), (0.8, 0.1)), 0.05, 0.3)
    body = blend(ellipse(b.x, b.y, (-0.05, 0.25), (0.72, 0.4)), capsule(b.x, b.y, (-0.55, 0.15), (-0.9, -0.12), 0.09), 0.2)
    neck = capsule(b.x, b.y, (0.42, 0.1), (0.5, -0.42), 0.16)
    head = ellipse(b.x, b.y, (0.52, -0.5), (0.28, 0.25))
    b.fill(polygon(b.x, b.y, [(0.7, -0.58), (1.08, -0.44), (0.7, -0.36)], 0.02), Material((0.93, 0.5, 0.1), bevel=0.1))
    b.fill(blend(blend(body, neck, 0.25), head, 0.12), feather)
    if rng.random() < 0.4:
        b.fill(head, recoloured(feather, (0.08, 0.36, 0.22)))
    wing = blend(ellipse(b.x, b.y, (-0.12, 0.2), (0.42, 0.22)), capsule(b.x, b.y, (-0.3, 0.15), (-0.65, 0.05), 0.07), 0.1)
    b.fill(wing, recoloured(feather, shift(colour, value=0.82)))
    b.fill(ellipse(b.x, b.y, (0.6, -0.55), (0.05, 0.05)), BLACK)


def balloon(b: Brush, rng: Rng, colour: Colour) -> None:
    """Round and glossy, on a string."""
    rubber = Material(colour, bevel=0.6, gloss=0.6, grain=0.04)
    bend = rng.uniform(-0.15, 0.15)
    bent = np.asarray(b.x + bend * np.sin(4 * b.y), np.float32)
    b.fill(capsule(bent, b.y, (0, 0.4), (0, 1.2), 0.018), Material((0.85, 0.85, 0.8), bevel=0.02))
    shape = blend(ellipse(b.x, b.y, (0, -0.25), (0.55, 0.6)), ellipse(b.x, b.y, (0, 0.25), (0.22, 0.2)), 0.25)
    texture = bands(b.x + 0.02, (colour, shift(colour, value=1.25, saturation=0.6)), 0.22) if rng.random() < 0.35 else None
    b.fill(shape, rubber, texture)
    b.fill(polygon(b.x, b.y, [(0, 0.38), (-0.09, 0.5), (0.09, 0.5)], 0.01), recoloured(rubber, shift(colour, value=0.75)))


def kite(b: Brush, rng: Rng, colour: Colour) -> None:
    """A diamond of cloth with a tail."""
    other = shift(colour, hue=rng.uniform(0.2, 0.5))
    sway = rng.uniform(0.1, 0.25)
    b.fill(
        capsule(np.asarray(b.x - sway * np.sin(5 * (b.y - 0.5)), np.float32), b.y, (0, 0.5), (0, 1.25), 0.02),
        Material((0.3, 0.3, 0.3)),
    )
    for y in (0.75, 0.98, 1.2):
        x = sway * np.sin(5 * (y - 0.5))
        bow = union(
            polygon(b.x, b.y, [(x, y), (x - 0.14, y - 0.07), (x - 0.14, y + 0.07)]),
            polygon(b.x, b.y, [(x, y), (x + 0.14, y - 0.07), (x + 0.14, y + 0.07)]),
        )
        b.fill(bow, Material(other, bevel=0.1))
    cloth = Material(colour, bevel=0.8, gloss=0.1)
    quarters = np.where(((b.x > 0) ^ (b.y > -0.2))[..., None], np.array(colour), np.array(other)).astype(np.float32)
    b.fill(polygon(b.x, b.y, [(0, -0.95), (0.62, -0.2), (0, 0.62), (-0.62, -0.2)]), cloth, quarters)
    frame = union(capsule(b.x, b.y, (0, -0.93), (0, 0.6), 0.02), capsule(b.x, b.y, (-0.6, -0.2), (0.6, -0.2), 0.02))
    b.fill(frame, WOOD)


def sheep(b: Brush, rng: Rng, colour: Colour) -> None:
    """Wool on four legs."""
    dark = Material(shift(COLOURS["brown"], value=rng.uniform(0.4, 1.1)), bevel=0.12)
    b.shadow(ellipse(b.x, b.y, (0, 0.68), (0.8, 0.1)))
    for x in (-0.42, -0.2, 0.22, 0.42):
        b.fill(capsule(b.x, b.y, (x, 0.3), (x + rng.uniform(-0.06, 0.06), 0.62), 0.06), dark)
    wool = ellipse(b.x, b.y, (-0.02, 0.0), (0.68, 0.42))
    for angle in np.linspace(0, 2 * np.pi, 11)[:-1] + rng.uniform(0, 0.6):
        centre = (0.58 * float(np.cos(angle)) - 0.02, 0.33 * float(np.sin(angle)))
        radius = rng.uniform(0.15, 0.22)
        wool = blend(wool, ellipse(b.x, b.y, centre, (radius, radius)), 0.06)
    wool = np.asarray(wool + 0.05 * noise(b.x, b.y, 0.25, 1.0), np.float32)
    b.fill(wool, Material(shift(colour, saturation=0.35, value=1.0), bevel=0.3, gloss=0.0, grain=0.25))
    b.fill(capsule(b.x, b.y, (0.62, -0.22), (0.48, -0.3), 0.07), dark)
    b.fill(ellipse(b.x, b.y, (0.74, -0.12), (0.2, 0.25)), dark)
    b.fill(ellipse(b.x, b.y, (0.8, -0.2), (0.035, 0.04)), Material((0.95, 0.95, 0.95), bevel=0.03))


def mushroom(b: Brush, rng: Rng, colour: Colour) -> None:
    """A cap on a stem."""
    b.shadow(ellipse(b.x, b.y, (0, 0.66), (0.45, 0.08)))
    stem = Material((0.90, 0.85, 0.74), bevel=0.2, gloss=0.05, grain=0.15)
    width = rng.uniform(0.14, 0.22)
    b.fill(blend(box(b.x, b.y, (0, 0.3), (width, 0.36), 0.1), ellipse(b.x, b.y, (0, 0.55), (width * 1.5, 0.12)), 0.1), stem)
    dome = ellipse(b.x, b.y, (0, 0.08), (rng.uniform(0.7, 0.95), rng.uniform(0.7, 0.95)))
    cap = intersection(dome, np.asarray(b.y - 0.08 - 0.1 * b.x**2, np.float32))
    b.fill(ellipse(b.x, b.y, (0, 0.1), (0.6, 0.1)), recoloured(stem, (0.75, 0.66, 0.55)))
    spots = dots(b.x, b.y, colour, (0.95, 0.92, 0.86), rng.uniform(0.28, 0.4), 0.09) if rng.random() < 0.75 else None
    b.fill(cap, Material(colour, bevel=0.45, gloss=0.25), spots)


def apple(b: Brush, rng: Rng, colour: Colour) -> None:
    """Two round cheeks, a stalk, a leaf."""
    b.shadow(ellipse(b.x, b.y, (0.05, 0.64), (0.6, 0.1)))
    cheeks = blend(ellipse(b.x, b.y, (-0.22, 0.1), (0.5, 0.56)), ellipse(b.x, b.y, (0.22, 0.1), (0.5, 0.56)), 0.3)
    other = shift(colour, hue=rng.uniform(-0.08, 0.12), value=1.05)
    share = np.clip(0.5 + 0.5 * b.x + 0.3 * noise(b.x, b.y, 0.8), 0, 1)[..., None]
    skin = (share * np.array(colour) + (1 - share) * np.array(other)).astype(np.float32)
    b.fill(cheeks, Material(colour, bevel=0.55, gloss=0.5, grain=0.1), skin)
    b.fill(ellipse(b.x, b.y, (0, -0.38), (0.16, 0.06)), Material(shift(colour, value=0.5), bevel=0.2, gloss=0))
    b.fill(capsule(b.x, b.y, (0, -0.38), (0.08, -0.66), 0.035), WOOD)
    if rng.random() < 0.7:
        b.fill(ellipse(b.x - b.y * 0.5, b.y, (0.56, -0.6), (0.24, 0.1)), Material(COLOURS["green"], bevel=0.1))


def cup(b: Brush, rng: Rng, colour: Colour) -> None:
    """Straight sides, a handle, something to drink."""
    glaze = Material(colour, bevel=0.22, gloss=0.45, grain=0.05)
    b.shadow(ellipse(b.x, b.y, (0.05, 0.66), (0.6, 0.1)))
    b.fill(ring(b.x, b.y, (0.55, 0.08), (0.27, 0.27), 0.07), recoloured(glaze, shift(colour, value=0.9)))
    narrow = rng.uniform(0.36, 0.52)
    side = polygon(b.x, b.y, [(-0.55, -0.45), (0.55, -0.45), (narrow, 0.6), (-narrow, 0.6)], 0.04)
    pale = COLOURS["white"] if colour != COLOURS["white"] else COLOURS["blue"]
    choice = rng.random()
    texture: Texture | None = None
    if choice < 0.25:
        texture = bands(b.y + 0.45, (colour, pale), 0.21)
    elif choice < 0.45:
        texture = dots(b.x, b.y, colour, pale, 0.3, 0.08)
    elif choice < 0.55:
        texture = checks(b.x, b.y, (colour, pale), 0.22)
    b.fill(side, glaze, texture)
    b.fill(ellipse(b.x, b.y, (0, -0.46), (0.57, 0.14)), recoloured(glaze, shift(colour, value=1.15, saturation=0.8)))
    b.fill(ellipse(b.x, b.y, (0, -0.44), (0.49, 0.1)), Material((0.24, 0.13, 0.07), bevel=0.3, gloss=0.3))


OBJECTS: dict[str, tuple[Callable[[Brush, Rng, Colour], None], str, tuple[str, ...]]] = {
    # class: how it is drawn, the scene where it belongs, its colours
    "apple": (apple, "table", ("red", "green", "yellow")),
    "balloon": (balloon, "sky", ("red", "green", "yellow", "blue", "orange", "purple")),
    "boat": (boat, "water", ("red", "blue", "green", "white", "brown", "orange")),
    "bus": (bus, "road", ("red", "blue", "yellow", "green", "white", "orange")),
    "car": (car, "road", ("red", "blue", "yellow", "green", "white", "orange")),
    "cup": (cup, "table", ("red", "blue", "yellow", "green", "white", "purple")),
    "duck": (duck, "water", ("yellow", "white", "brown")),
    "kite": (kite, "sky", ("red", "blue", "yellow", "green", "orange", "purple")),
    "mushroom": (mushroom, "meadow", ("red", "brown", "orange", "white")),
    "sheep": (sheep, "meadow", ("white", "brown", "yellow")),
}
