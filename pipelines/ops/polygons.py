"""Outlines of masks along the edges of pixels, holes cut in by bridges of no width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

Ring = NDArray[np.float64]
"""A closed line: ``(n, 2)`` corners as x, y in pixels, the first one not repeated."""


def outlines(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """Outlines of the parts of a mask; pixels that touch at a corner alone are parts of their own.

    Args:
        mask: ``(H, W)``.

    Returns:
        For each part its outer ring, then those of its holes.

    Raises:
        UsageError: rasterio is missing.
    """
    try:
        from rasterio.features import shapes
    except ImportError:
        raise UsageError("polygons need rasterio", "pip install 'ssr[vector]', or a format of pixels") from None
    found = shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    return [[np.asarray(ring, dtype=np.float64)[:-1] for ring in shape["coordinates"]] for shape, _ in found]


def ring_area(ring: Ring) -> float:
    """Area within a ring, by the shoelace formula; holes cut in by `with_holes` do not count."""
    return abs(_signed_area(ring))


def simplified(ring: Ring, tolerance: float) -> Ring:
    """A ring with fewer corners (Douglas-Peucker); itself if fewer than three would be left.

    Args:
        ring: What to simplify.
        tolerance: Pixels by which it may move.
    """
    from skimage.measure import approximate_polygon

    if tolerance <= 0:
        return ring
    # the ring is cut at its two most distant corners: approximate_polygon keeps the ends of what it is given
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    halves = [approximate_polygon(half, tolerance) for half in (closed[: far + 1], closed[far:])]  # type: ignore[no-untyped-call]
    fewer: Ring = np.concatenate([halves[0][:-1], halves[1][:-1]])
    return fewer if len(fewer) >= 3 and ring_area(fewer) > 0 else ring


def with_holes(rings: Sequence[Ring]) -> Ring:
    """One ring of an outer ring and its holes: a bridge leads to each hole and back, so that areas and pixels stay.

    Args:
        rings: The outer one, then those of holes.
    """
    joined, *holes = rings
    outer = _signed_area(joined)
    for hole in holes:
        turned = (
            hole[::-1] if _signed_area(hole) * outer > 0 else hole
        )  # against the outer ring: right for every rule of filling
        distances = ((joined[:, None] - turned[None]) ** 2).sum(axis=-1)  # (n, m)
        here, there = divmod(int(distances.argmin()), len(turned))
        path = np.concatenate([np.roll(turned, -there, axis=0), turned[there : there + 1]])
        joined = np.concatenate([joined[: here + 1], path, joined[here:]])
    return joined


def _signed_area(ring: Ring) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
