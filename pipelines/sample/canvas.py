"""Painting: a shape becomes a lit, textured surface.

Every shape gets a rounded edge, and with it a height; the light falls on the slope of that height. That, grain and a texture in
the object's own coordinates make the difference between clip-art and something that a photo could show.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from pipelines.sample.shapes import Field

Colour = tuple[float, float, float]
"""RGB, each in [0, 1]."""

_TILE = 256


def noise_tile(rng: np.random.Generator) -> Field:
    """Fractal noise that repeats at its border, ``(256, 256)``, mean 0, about [-1, 1]."""
    total = np.zeros((_TILE, _TILE), np.float32)
    for octave in range(2, 8):
        cells = 2**octave
        coarse = rng.standard_normal((cells, cells)).astype(np.float32)
        wrapped = np.pad(coarse, 2, mode="wrap")
        fine = zoom(wrapped, _TILE // cells, order=1, mode="grid-constant", grid_mode=True)
        offset = 2 * _TILE // cells
        total += fine[offset : offset + _TILE, offset : offset + _TILE] / 2 ** (octave - 2)
    return np.asarray(total / np.abs(total).max(), np.float32)


_NOISE = noise_tile(np.random.default_rng(20251201))


def noise(x: Field, y: Field, scale: float, shift: float = 0.0) -> Field:
    """Fractal noise at coordinates, about [-1, 1]; ``scale`` = size of its largest features in the unit of ``x, y``."""
    step = _TILE / 4 / scale
    row = ((y + 7.3 * shift) * step).astype(np.int32) % _TILE
    column = ((x + 3.1 * shift) * step).astype(np.int32) % _TILE
    return np.asarray(_NOISE[row, column], np.float32)


@dataclass(frozen=True)
class Frame:
    """Where an object stands: its own coordinates, about [-1, 1], to pixels.

    Attributes:
        centre: ``(x, y)`` in pixels.
        size: Pixels a unit.
        angle: Rotation in radians.
        mirror: Seen from the other side.
        stretch: Width over height.
        wobble: Strength of a smooth deformation.
        phase: Which deformation.
    """

    centre: tuple[float, float]
    size: float
    angle: float = 0.0
    mirror: bool = False
    stretch: float = 1.0
    wobble: float = 0.0
    phase: float = 0.0

    def local(self, columns: Field, rows: Field) -> tuple[Field, Field]:
        """Object coordinates of pixels."""
        dx, dy = (columns - self.centre[0]) / self.size, (rows - self.centre[1]) / self.size
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        x, y = (cos * dx + sin * dy) / self.stretch, (-sin * dx + cos * dy) * self.stretch
        if self.mirror:
            x = -x
        bent_x = x + self.wobble * np.sin(2.1 * y + self.phase)
        bent_y = y + self.wobble * np.sin(1.7 * x + 1.3 * self.phase)
        return np.asarray(bent_x, np.float32), np.asarray(bent_y, np.float32)


@dataclass(frozen=True)
class Material:
    """What a surface is made of.

    Attributes:
        colour: Base colour.
        bevel: Width of the rounded edge in object units; large = ball, small = plate.
        gloss: Strength of the highlight.
        grain: Strength of fine noise in the colour.
        glow: Share of the colour that needs no light.
    """

    colour: Colour
    bevel: float = 0.3
    gloss: float = 0.15
    grain: float = 0.12
    glow: float = 0.0


@dataclass
class Canvas:
    """A picture being painted.

    Attributes:
        pixels: ``(H, W, 3)`` fp32 RGB in [0, 1].
        light: Direction towards the light, ``(x, y, z)``, unit length; y points down, z to the viewer.
        warmth: Colour of the light.
    """

    pixels: NDArray[np.float32]
    light: tuple[float, float, float]
    warmth: Colour = (1.0, 1.0, 1.0)
    drawn: NDArray[np.bool_] | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)``."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def window(self, frame: Frame, reach: float) -> tuple[slice, slice] | None:
        """Rows and columns that an object of radius ``reach`` can touch, or None."""
        height, width = self.size
        radius = reach * frame.size + 2
        top, bottom = max(0, int(frame.centre[1] - radius)), min(height, int(frame.centre[1] + radius) + 1)
        left, right = max(0, int(frame.centre[0] - radius)), min(width, int(frame.centre[0] + radius) + 1)
        return (slice(top, bottom), slice(left, right)) if bottom > top and right > left else None

    def paint(
        self,
        window: tuple[slice, slice],
        distance: Field,
        pixel: float,
        material: Material,
        texture: NDArray[np.float32] | None = None,
        opacity: float = 1.0,
    ) -> None:
        """Lay a lit shape over the picture and mark its pixels as drawn.

        Args:
            window: Rows and columns that ``distance`` covers.
            distance: Signed distance in object units.
            pixel: Side of a pixel in object units.
            material: Surface.
            texture: Colour of each pixel, ``(h, w, 3)``, instead of the material's.
            opacity: Share of what lies behind that is covered.
        """
        alpha = np.clip(0.5 - distance / pixel, 0, 1)[..., None] * opacity  # (h, w, 1)
        depth = np.clip(-distance / material.bevel, 0, 1)
        height = np.sqrt(1 - (1 - depth) ** 2) * material.bevel / pixel  # pixels
        slope_y, slope_x = np.gradient(height)
        norm = np.sqrt(slope_x**2 + slope_y**2 + 1)
        lx, ly, lz = self.light
        facing = np.clip((-lx * slope_x - ly * slope_y + lz) / norm, 0, 1)[..., None]
        halfway = np.array([lx, ly, lz + 1]) / np.linalg.norm([lx, ly, lz + 1])
        shine = np.clip((-halfway[0] * slope_x - halfway[1] * slope_y + halfway[2]) / norm, 0, 1)[..., None] ** 24
        base = np.broadcast_to(np.array(material.colour, np.float32), (*distance.shape, 3)) if texture is None else texture
        lit = base * (material.glow + (1 - material.glow) * (0.42 + 0.75 * facing)) * np.array(self.warmth)
        lit = lit + material.gloss * shine
        place = self.pixels[window]
        place += alpha * (lit.astype(np.float32) - place)
        if self.drawn is not None:
            self.drawn[window] |= alpha[..., 0] > 0.5

    def shade(self, window: tuple[slice, slice], distance: Field, softness: float, strength: float) -> None:
        """Darken softly inside a shape: a shadow."""
        amount = strength / (1 + np.exp(np.clip(distance / softness, -20, 20)))
        self.pixels[window] *= (1 - amount[..., None]).astype(np.float32)


def finish(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Lens and film: a little blur, vignette, exposure, grain.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    height, width = canvas.size
    pixels = gaussian_filter(canvas.pixels, (rng.uniform(0.2, 0.7),) * 2 + (0,))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = 1 - rng.uniform(0, 0.18) * (x**2 + y**2)
    pixels = pixels * vignette[..., None] * rng.uniform(0.88, 1.1)
    pixels = 0.5 + (pixels - 0.5) * rng.uniform(0.9, 1.12)
    pixels += rng.normal(0, rng.uniform(0.008, 0.03), (height, width, 1))
    return np.asarray(np.clip(pixels * 255, 0, 255).round(), np.uint8)
