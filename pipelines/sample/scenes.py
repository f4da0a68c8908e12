"""The five scenes: what is behind, and clutter that belongs to no class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipelines.sample.brush import Brush, shift
from pipelines.sample.canvas import Colour, Material, noise
from pipelines.sample.objects import COLOURS, GLASS, WOOD, Rng
from pipelines.sample.shapes import Field, blend, box, capsule, ellipse, polygon, union

Pixels = NDArray[np.float32]


def _grid(height: int, width: int) -> tuple[Field, Field]:
    """Coordinates in units of the shorter side, y from 0 at the top."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    unit = min(height, width)
    return columns / unit, rows / unit


def _mix(share: Field, first: Colour, second: Colour) -> Pixels:
    share = np.clip(share, 0, 1)[..., None]
    return np.asarray((1 - share) * np.array(first) + share * np.array(second), np.float32)


def _air(x: Field, y: Field, rng: Rng, clouds: float) -> Pixels:
    evening = rng.random() < 0.2
    top: Colour = (0.35, 0.38, 0.62) if evening else (rng.uniform(0.25, 0.5), rng.uniform(0.5, 0.68), rng.uniform(0.8, 0.95))
    low: Colour = (0.95, 0.70, 0.52) if evening else (0.78, 0.88, 0.95)
    pixels = _mix(y * 1.1, top, low)
    mist = noise(x * 0.6, y * 1.4, rng.uniform(0.6, 1.1), rng.uniform(0, 50))
    cover = np.clip(mist * 2.5 - 0.6 + clouds, 0, 1)[..., None]
    return np.asarray(pixels * (1 - 0.8 * cover) + 0.8 * cover * np.array([0.97, 0.96, 0.95]), np.float32)


def _hills(pixels: Pixels, x: Field, y: Field, horizon: float, rng: Rng) -> None:
    for depth in range(2):
        edge = horizon - 0.06 * (2 - depth) + 0.12 * noise(x, np.zeros_like(y), 0.9, rng.uniform(0, 50))
        tone = shift((0.32, 0.45, 0.38), hue=rng.uniform(-0.05, 0.1), value=0.9 + 0.25 * (1 - depth))
        inside = np.clip((y - edge) * 60, 0, 1)[..., None]
        pixels *= 1 - inside
        pixels += inside * np.array(tone, np.float32) * (1 + 0.15 * noise(x, y, 0.15))[..., None]


def sky(height: int, width: int, rng: Rng) -> Pixels:
    """Air and clouds, sometimes hills far below."""
    x, y = _grid(height, width)
    pixels = _air(x, y, rng, rng.uniform(-0.2, 0.5))
    if rng.random() < 0.4:
        _hills(pixels, x, y, float(y.max()) * rng.uniform(0.85, 0.97), rng)
    return pixels


def water(height: int, width: int, rng: Rng) -> Pixels:
    """Waves up to a horizon."""
    x, y = _grid(height, width)
    horizon = float(y.max()) * rng.uniform(0.08, 0.4)
    pixels = _air(x, y, rng, rng.uniform(-0.2, 0.3))
    if rng.random() < 0.5:
        _hills(pixels, x, y, horizon, rng)
    depth = np.clip((y - horizon) / max(float(y.max()) - horizon, 0.1), 0, 1)
    deep = shift((0.12, 0.36, 0.52), hue=rng.uniform(-0.08, 0.04), value=rng.uniform(0.8, 1.3))
    sea = _mix(depth, shift(deep, saturation=0.6, value=1.4), deep)
    ripples = noise(x / (0.25 + depth), y / (0.06 + 0.1 * depth), 1.1, rng.uniform(0, 50))
    foam = np.clip(ripples * 3 - 1.2, 0, 0.5)
    sea = np.asarray(sea * (1 + 0.35 * ripples)[..., None] + foam[..., None], np.float32)
    below = np.clip((y - horizon) * 80, 0, 1)[..., None]
    return np.asarray(pixels * (1 - below) + sea * below, np.float32)


def meadow(height: int, width: int, rng: Rng) -> Pixels:
    """Grass up to a horizon."""
    x, y = _grid(height, width)
    horizon = float(y.max()) * rng.uniform(0.1, 0.4)
    pixels = _air(x, y, rng, rng.uniform(-0.1, 0.4))
    _hills(pixels, x, y, horizon, rng)
    depth = np.clip((y - horizon) / max(float(y.max()) - horizon, 0.1), 0, 1)
    grass = shift((0.36, 0.55, 0.20), hue=rng.uniform(-0.06, 0.05), value=rng.uniform(0.75, 1.15))
    field = _mix(depth, shift(grass, value=1.15, saturation=0.8), grass)
    blades = noise(x / 0.07, y / (0.1 + 0.3 * depth), 1.0, rng.uniform(0, 50)) + 0.6 * noise(
        x, y / 0.4, 0.5, rng.uniform(0, 50)
    )
    field = np.asarray(field * (1 + 0.45 * blades)[..., None], np.float32)
    below = np.clip((y - horizon) * 50 + 2 * noise(x, y, 0.05), 0, 1)[..., None]
    return np.asarray(pixels * (1 - below) + field * below, np.float32)


def road(height: int, width: int, rng: Rng) -> Pixels:
    """Asphalt with a line, houses behind."""
    x, y = _grid(height, width)
    bottom = float(y.max())
    horizon = bottom * rng.uniform(0.3, 0.5)
    pixels = _air(x, y, rng, rng.uniform(-0.2, 0.2))
    left = -0.1
    while left < x.max():
        wide, tall = rng.uniform(0.22, 0.5), rng.uniform(0.1, 0.42)
        house = shift(rng.choice([(0.66, 0.45, 0.36), (0.72, 0.66, 0.55), (0.55, 0.56, 0.6), (0.75, 0.55, 0.4)]),
                      value=rng.uniform(0.75, 1.1))  # fmt: skip
        inside = (x >= left) & (x < left + wide) & (y > horizon - tall)
        windows = inside & ((x - left) % 0.11 > 0.05) & ((y - horizon + tall) % 0.12 > 0.06)
        tone = 1 + 0.15 * noise(x, y, 0.3, left)
        pixels[inside] = (np.array(house, np.float32) * tone[..., None])[inside]
        pixels[windows] = np.array([0.36, 0.42, 0.5]) * rng.uniform(0.7, 1.3)
        left += wide + (rng.uniform(0, 0.2) if rng.random() < 0.3 else 0)
    grey = rng.uniform(0.32, 0.5)
    asphalt = np.array([grey, grey, grey * 1.04], np.float32) * (1 + 0.22 * noise(x, y, 0.12, rng.uniform(0, 50)))[..., None]
    line = horizon + (bottom - horizon) * rng.uniform(0.35, 0.75)
    mark = (np.abs(y - line) < 0.012) & ((x + rng.uniform(0, 1)) % 0.3 < 0.18)
    asphalt[mark] = 0.85
    kerb = np.abs(y - horizon - 0.03) < 0.03
    asphalt[kerb] = np.array([0.62, 0.61, 0.58]) * (1 + 0.1 * noise(x, y, 0.2))[kerb][..., None]
    return np.asarray(np.where((y > horizon)[..., None], asphalt, pixels), np.float32)


def table(height: int, width: int, rng: Rng) -> Pixels:
    """Wooden boards or a cloth before a wall."""
    x, y = _grid(height, width)
    horizon = float(y.max()) * rng.uniform(0.12, 0.42)
    wall_tone = shift((0.74, 0.70, 0.62), hue=rng.uniform(-0.2, 0.3), value=rng.uniform(0.6, 1.1))
    wall = np.array(wall_tone, np.float32) * (1 + 0.1 * noise(x, y, 0.5, rng.uniform(0, 50)))[..., None]
    if rng.random() < 0.5:
        wall = wall * (1 - 0.14 * (np.floor(x / rng.uniform(0.08, 0.16)) % 2))[..., None]
    if rng.random() < 0.65:
        grain = noise(x / 1.6, y / 0.12, 1.0, rng.uniform(0, 50)) + 0.4 * np.sin(60 * y + 9 * noise(x, y, 1.2))
        wood = shift((0.60, 0.40, 0.24), hue=rng.uniform(-0.02, 0.03), value=rng.uniform(0.7, 1.25))
        top = np.array(wood, np.float32) * (1 + 0.22 * grain)[..., None]
        top[((y - horizon) % 0.27) < 0.008] *= 0.6
    else:
        cloth = shift(list(COLOURS.values())[rng.integers(len(COLOURS))], saturation=0.7, value=1.1)
        side = rng.uniform(0.07, 0.14)
        weave = (np.floor(x / side) + np.floor(y / side)) % 2
        top = _mix(weave * 0.8, (0.93, 0.92, 0.88), cloth) * (1 + 0.08 * noise(x, y, 0.3))[..., None]
    edge = np.clip((y - horizon) * 90, 0, 1)[..., None]
    return np.asarray(wall * (1 - edge) + top * edge, np.float32)


def cloud(b: Brush, rng: Rng) -> None:
    """White and woolly, like a sheep without legs."""
    puff = ellipse(b.x, b.y, (0, 0.1), (0.75, 0.28))
    for place in np.linspace(-0.5, 0.5, 4):
        radius = rng.uniform(0.2, 0.36)
        puff = blend(puff, ellipse(b.x, b.y, (float(place), rng.uniform(-0.15, 0.05)), (radius, radius)), 0.1)
    puff = np.asarray(puff + 0.08 * noise(b.x, b.y, 0.5, 2.0), np.float32)
    b.fill(puff, Material((0.95, 0.95, 0.96), bevel=0.5, gloss=0.0, grain=0.06, glow=0.4), opacity=0.9)


def rock(b: Brush, rng: Rng) -> None:
    """Grey and lumpy."""
    stone = ellipse(b.x, b.y, (0, 0.2), (rng.uniform(0.6, 0.9), rng.uniform(0.35, 0.5))) + 0.16 * noise(b.x, b.y, 0.7, 3.0)
    b.shadow(ellipse(b.x, b.y, (0, 0.58), (0.8, 0.1)))
    grey = rng.uniform(0.35, 0.65)
    b.fill(np.asarray(stone, np.float32), Material((grey, grey * 0.97, grey * 0.92), bevel=0.4, gloss=0.02, grain=0.45))


def bush(b: Brush, rng: Rng) -> None:
    """Round and leafy."""
    leaves = ellipse(b.x, b.y, (0, 0.15), (0.7, 0.5))
    for angle in rng.uniform(0, 2 * np.pi, 6):
        centre = (0.5 * float(np.cos(angle)), 0.15 + 0.35 * float(np.sin(angle)))
        leaves = blend(leaves, ellipse(b.x, b.y, centre, (0.28, 0.28)), 0.06)
    leaves = leaves + 0.12 * noise(b.x, b.y, 0.22, 4.0)
    tone = shift((0.2, 0.42, 0.16), hue=rng.uniform(-0.07, 0.05), value=rng.uniform(0.8, 1.6))
    b.fill(np.asarray(leaves, np.float32), Material(tone, bevel=0.35, gloss=0.02, grain=0.6))


def flower(b: Brush, rng: Rng) -> None:
    """Petals on a stalk."""
    colour = list(COLOURS.values())[rng.integers(len(COLOURS))]
    b.fill(capsule(b.x, b.y, (0, -0.2), (0.05, 0.7), 0.04), Material((0.25, 0.5, 0.2)))
    for angle in np.linspace(0, 2 * np.pi, 7)[:-1]:
        centre = (0.26 * float(np.cos(angle)), -0.35 + 0.26 * float(np.sin(angle)))
        b.fill(ellipse(b.x, b.y, centre, (0.17, 0.17)), Material(colour, bevel=0.2))
    b.fill(ellipse(b.x, b.y, (0, -0.35), (0.15, 0.15)), Material(COLOURS["yellow"], bevel=0.15))


def buoy(b: Brush, rng: Rng) -> None:
    """A red and white ball on the water."""
    ball = ellipse(b.x, b.y, (0, 0.2), (0.42, 0.42))
    stripes = np.where((np.abs(b.y - 0.2) < 0.12)[..., None], 0.9, np.array(COLOURS["red"])).astype(np.float32)
    b.shadow(ellipse(b.x, b.y, (0, 0.6), (0.5, 0.08)))
    b.fill(capsule(b.x, b.y, (0, -0.2), (0, -0.6), 0.05), Material((0.3, 0.3, 0.3)))
    b.fill(ball, Material(COLOURS["red"], bevel=0.45, gloss=0.4), stripes)


def post(b: Brush, rng: Rng) -> None:
    """A lamp or a sign."""
    b.fill(capsule(b.x, b.y, (0, -0.7), (0, 0.9), 0.04), Material((0.25, 0.26, 0.28), bevel=0.06))
    if rng.random() < 0.5:
        b.fill(ellipse(b.x, b.y, (0, -0.78), (0.17, 0.2)), Material((0.98, 0.92, 0.7), bevel=0.2, glow=0.5))
    else:
        tone = COLOURS["red"] if rng.random() < 0.5 else COLOURS["blue"]
        b.fill(ellipse(b.x, b.y, (0, -0.72), (0.24, 0.24)), Material(tone, bevel=0.05))
        b.fill(box(b.x, b.y, (0, -0.72), (0.15, 0.05)), Material(COLOURS["white"], bevel=0.05))


def cone(b: Brush, rng: Rng) -> None:
    """Orange and white."""
    body = polygon(b.x, b.y, [(-0.1, -0.6), (0.1, -0.6), (0.32, 0.55), (-0.32, 0.55)], 0.02)
    stripes = np.where((np.abs(b.y) < 0.16)[..., None], 0.92, np.array(COLOURS["orange"])).astype(np.float32)
    b.shadow(ellipse(b.x, b.y, (0, 0.62), (0.55, 0.08)))
    b.fill(union(body, box(b.x, b.y, (0, 0.58), (0.48, 0.06), 0.03)), Material(COLOURS["orange"], bevel=0.25), stripes)


def book(b: Brush, rng: Rng) -> None:
    """Lying flat."""
    cover = list(COLOURS.values())[rng.integers(len(COLOURS))]
    b.shadow(box(b.x, b.y, (0.04, 0.46), (0.75, 0.18)))
    b.fill(polygon(b.x, b.y, [(-0.72, 0.2), (0.62, 0.2), (0.78, 0.5), (-0.78, 0.5)]), Material((0.92, 0.9, 0.82), bevel=0.05))
    b.fill(polygon(b.x, b.y, [(-0.72, 0.14), (0.62, 0.14), (0.78, 0.42), (-0.78, 0.42)]), Material(cover, bevel=0.06))


def bottle(b: Brush, rng: Rng) -> None:
    """Glass."""
    shape = blend(box(b.x, b.y, (0, 0.2), (0.24, 0.44), 0.1), box(b.x, b.y, (0, -0.45), (0.09, 0.3), 0.04), 0.2)
    b.shadow(ellipse(b.x, b.y, (0, 0.64), (0.35, 0.07)))
    b.fill(shape, Material(shift(GLASS.colour, hue=rng.uniform(-0.3, 0.1), value=0.7), bevel=0.2, gloss=0.6), opacity=0.85)


def stump(b: Brush, rng: Rng) -> None:
    """A sawn tree."""
    b.shadow(ellipse(b.x, b.y, (0, 0.62), (0.65, 0.1)))
    b.fill(box(b.x, b.y, (0, 0.25), (0.48, 0.38), 0.1), WOOD)
    b.fill(ellipse(b.x, b.y, (0, -0.1), (0.47, 0.14)), Material((0.76, 0.6, 0.42), bevel=0.1, grain=0.3))


Painter = Callable[[Brush, Rng], None]

SCENES: dict[str, tuple[Callable[[int, int, Rng], Pixels], str, dict[str, Painter]]] = {
    # scene: its background, its words in a caption, its clutter
    "meadow": (meadow, "grass", {"bush": bush, "flower": flower, "rock": rock, "stump": stump, "cloud": cloud}),
    "road": (road, "road", {"cone": cone, "post": post, "bush": bush, "cloud": cloud}),
    "sky": (sky, "sky", {"cloud": cloud}),
    "table": (table, "table", {"book": book, "bottle": bottle}),
    "water": (water, "water", {"rock": rock, "buoy": buoy, "cloud": cloud}),
}
