"""A canvas seen from one object: its coordinates, its shapes, its colours."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipelines.sample.canvas import Canvas, Colour, Frame, Material, noise
from pipelines.sample.shapes import Field

Texture = NDArray[np.float32]
"""Colour of each pixel, ``(h, w, 3)``."""


class Brush:
    """Paints in an object's own coordinates.

    Args:
        canvas: Where to.
        frame: Where the object stands.
        reach: Radius of the object in its own units.

    Attributes:
        x: Object coordinate of each pixel of the window, rightwards.
        y: The same, downwards.
    """

    def __init__(self, canvas: Canvas, frame: Frame, reach: float = 1.35) -> None:
        self._canvas = canvas
        self._frame = frame
        window = canvas.window(frame, reach * max(frame.stretch, 1 / frame.stretch))
        self._window = window or (slice(0, 0), slice(0, 0))
        self.visible = window is not None
        rows, columns = np.mgrid[self._window].astype(np.float32)
        self.x, self.y = frame.local(columns, rows)

    def fill(self, distance: Field, material: Material, texture: Texture | None = None, opacity: float = 1.0) -> None:
        """Paint a shape, with fine noise in its colour."""
        if not self.visible or min(distance.shape) < 2:
            return
        base = np.broadcast_to(np.array(material.colour, np.float32), (*distance.shape, 3)) if texture is None else texture
        grain = 1 + material.grain * noise(self.x, self.y, 0.5, self._frame.phase)[..., None]
        self._canvas.paint(self._window, distance, 1 / self._frame.size, material, np.clip(base * grain, 0, 1.2), opacity)

    def shadow(self, distance: Field, softness: float = 0.06, strength: float = 0.4) -> None:
        """Darken what lies behind."""
        if self.visible:
            self._canvas.shade(self._window, distance, softness, strength)


def bands(position: Field, colours: tuple[Colour, ...], width: float) -> Texture:
    """Stripes of equal width along a coordinate."""
    index = np.floor(position / width).astype(int) % len(colours)
    return np.asarray(np.asarray(colours, np.float32)[index])


def dots(x: Field, y: Field, ground: Colour, dot: Colour, spacing: float, radius: float) -> Texture:
    """Dots in a hexagonal grid."""
    row = np.round(y / spacing)
    u = (x / spacing + 0.5 * (row % 2) + 0.5) % 1 - 0.5
    inside = np.hypot(u, y / spacing - row) * spacing < radius
    return np.where(inside[..., None], np.array(dot, np.float32), np.array(ground, np.float32)).astype(np.float32)


def checks(x: Field, y: Field, colours: tuple[Colour, Colour], side: float) -> Texture:
    """Chequered."""
    index = (np.floor(x / side) + np.floor(y / side)).astype(int) % 2
    return np.asarray(np.asarray(colours, np.float32)[index])


def shift(colour: Colour, hue: float = 0.0, saturation: float = 1.0, value: float = 1.0) -> Colour:
    """A neighbour of a colour."""
    h, s, v = colorsys.rgb_to_hsv(*colour)
    return colorsys.hsv_to_rgb((h + hue) % 1, min(1.0, s * saturation), min(1.0, v * value))


def recoloured(material: Material, colour: Colour) -> Material:
    """The same surface in another colour."""
    return replace(material, colour=colour)
