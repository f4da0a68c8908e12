"""Signed distance functions: shapes as arrays of distances to their edge, negative inside.

All take coordinates ``x, y`` (any equal shape, fp32; y points down) and return distances of that shape in the same unit.
Formulas: I. Quilez, "2D distance functions".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""One value a pixel."""

Point = tuple[float, float]


def ellipse(x: Field, y: Field, centre: Point, radii: Point) -> Field:
    """Ellipse; exact on the edge, first-order elsewhere."""
    u, v = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1]
    norm = np.hypot(u, v)
    slope = np.hypot(u / radii[0], v / radii[1])
    radius = np.where(norm < 1e-4, min(radii), norm / np.maximum(slope, 1e-6))
    return np.asarray(radius * (norm - 1), np.float32)


def capsule(x: Field, y: Field, start: Point, end: Point, radius: float) -> Field:
    """Line with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    u, v = x - start[0], y - start[1]
    along = np.clip((u * dx + v * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
    return np.asarray(np.hypot(u - along * dx, v - along * dy) - radius, np.float32)


def box(x: Field, y: Field, centre: Point, half: Point, corner: float = 0.0) -> Field:
    """Box with round corners; ``half`` is half of its width and height."""
    u = np.abs(x - centre[0]) - half[0] + corner
    v = np.abs(y - centre[1]) - half[1] + corner
    outside = np.hypot(np.maximum(u, 0), np.maximum(v, 0))
    return np.asarray(outside + np.minimum(np.maximum(u, v), 0) - corner, np.float32)


def polygon(x: Field, y: Field, corners: Sequence[Point], rounding: float = 0.0) -> Field:
    """Convex polygon, corners in either order, blown up by ``rounding``."""
    points = np.asarray(corners, np.float32)
    centre = points.mean(0)
    distance = np.full(x.shape, -np.inf, np.float32)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, 0), strict=True):
        nx, ny = by - ay, ax - bx
        length = max(float(np.hypot(nx, ny)), 1e-6)
        sign = -1.0 if (centre[0] - ax) * nx + (centre[1] - ay) * ny > 0 else 1.0
        distance = np.maximum(distance, sign * ((x - ax) * nx + (y - ay) * ny) / length)
    return np.asarray(distance - rounding, np.float32)


def ring(x: Field, y: Field, centre: Point, radii: Point, thickness: float) -> Field:
    """Outline of an ellipse."""
    return np.asarray(np.abs(ellipse(x, y, centre, radii)) - thickness, np.float32)


def union(*fields: Field) -> Field:
    """All that is in any of the shapes."""
    return np.asarray(np.minimum.reduce(fields), np.float32)


def intersection(*fields: Field) -> Field:
    """All that is in every shape."""
    return np.asarray(np.maximum.reduce(fields), np.float32)


def blend(a: Field, b: Field, width: float) -> Field:
    """Union with a soft seam (polynomial smooth minimum)."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return np.asarray(b + (a - b) * h - width * h * (1 - h), np.float32)
