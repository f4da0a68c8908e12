"""Outlines of masks along the edges of pixels; bridges of no width join holes to the outer ring."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

Ring = NDArray[np.float64]
"""A closed line: ``(n, 2)`` corners as x, y in pixels; the first corner is not repeated at the end."""


def outlines(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """Return the outlines of the parts of a mask; pixels that touch only at a corner belong to separate parts.

    Args:
        mask: ``(H, W)``.

    Returns:
        For each part its outer ring, then the rings of its holes.

    Raises:
        UsageError: rasterio is not installed.
    """
    try:
        from rasterio.features import shapes
    except ImportError:
        raise UsageError("polygons need rasterio", "pip install 'ssr-wsss[vector]', or a format of pixels") from None
    found = shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    return [[np.asarray(ring, dtype=np.float64)[:-1] for ring in shape["coordinates"]] for shape, _ in found]


def ring_area(ring: Ring) -> float:
    """Compute the area within a ring by the shoelace formula, without the holes that `with_holes` joined to it."""
    return abs(_signed_area(ring))


def simplified(ring: Ring, tolerance: float) -> Ring:
    """Return a ring with fewer corners (Douglas-Peucker), or the same ring if fewer than three would be left.

    Args:
        ring: Ring to simplify.
        tolerance: Largest distance in pixels by which the line may move.
    """
    from skimage.measure import approximate_polygon

    if tolerance <= 0:
        return ring
    # The ring is cut at its first corner and the corner furthest from it, because approximate_polygon keeps both ends of its
    # input.
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    halves = [approximate_polygon(half, tolerance) for half in (closed[: far + 1], closed[far:])]  # type: ignore[no-untyped-call]
    fewer: Ring = np.concatenate([halves[0][:-1], halves[1][:-1]])
    return fewer if len(fewer) >= 3 and ring_area(fewer) > 0 else ring


def with_holes(rings: Sequence[Ring]) -> Ring:
    """Join an outer ring and its holes to one ring: a bridge leads to each hole and back, so that areas and pixels stay.

    Args:
        rings: The outer ring, then those of holes.
    """
    joined, *holes = rings
    outer = _signed_area(joined)
    for hole in holes:
        turned = hole[::-1] if _signed_area(hole) * outer > 0 else hole  # against the outer ring: right for every fill rule
        distances = ((joined[:, None] - turned[None]) ** 2).sum(axis=-1)  # (n, m)
        here, there = divmod(int(distances.argmin()), len(turned))
        path = np.concatenate([np.roll(turned, -there, axis=0), turned[there : there + 1]])
        joined = np.concatenate([joined[: here + 1], path, joined[here:]])
    return joined


def _signed_area(ring: Ring) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
