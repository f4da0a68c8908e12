from __future__ import annotations

import numpy as np
import pytest

from pipelines.sample import shapes
from pipelines.sample.shapes import Field

ROWS, COLUMNS = np.mgrid[-2:2:81j, -2:2:81j].astype(np.float32)


def edge_distance(inside: np.ndarray) -> np.ndarray:
    """The slow twin: distance of each pixel to the nearest pixel of the other side."""
    points = np.stack([COLUMNS, ROWS], -1).reshape(-1, 2)
    flat = inside.ravel()
    result = np.empty(len(points))
    for index, point in enumerate(points):
        result[index] = np.hypot(*(points[flat != flat[index]] - point).T).min()
    return np.where(flat, -result, result).reshape(inside.shape)


TRIANGLE = [(-1.0, 1.0), (1.2, 0.8), (0.1, -1.1)]

EXACT = {
    "circle": (
        shapes.ellipse(COLUMNS, ROWS, (0.2, -0.1), (0.9, 0.9)),
        np.hypot(COLUMNS - 0.2, ROWS + 0.1) <= 0.9,
    ),
    "capsule": (
        shapes.capsule(COLUMNS, ROWS, (-1, 0), (1, 0), 0.5),
        np.minimum.reduce([np.hypot(COLUMNS - x, ROWS) for x in np.linspace(-1, 1, 201)]) <= 0.5,
    ),
    "box": (
        shapes.box(COLUMNS, ROWS, (0.1, 0.2), (1.0, 0.6)),
        (np.abs(COLUMNS - 0.1) <= 1.0) & (np.abs(ROWS - 0.2) <= 0.6),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_distance_is_that_to_the_edge(name: str) -> None:
    field, inside = EXACT[name]
    expected = edge_distance(inside)
    assert field.dtype == np.float32
    assert np.abs(field - expected).max() < 0.06  # the twin is off by up to a pixel, 0.05


def crossed(corners: list[tuple[float, float]]) -> np.ndarray:
    """Inside a polygon, by counting crossings of a ray."""
    inside = np.zeros(ROWS.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        crosses = (ay > ROWS) != (by > ROWS)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & ((bx - ax) * (ROWS - ay) / (by - ay) + ax > COLUMNS)
    return inside


@pytest.mark.parametrize("corners", [TRIANGLE, TRIANGLE[::-1], [(-1, -1), (1, -1), (1.5, 1), (-1.5, 1)]])
def test_polygon_holds_what_a_ray_says(corners: list[tuple[float, float]]) -> None:
    field = shapes.polygon(COLUMNS, ROWS, corners)
    sure = np.abs(field) > 0.03
    assert ((field < 0) == crossed(list(corners)))[sure].all()


def test_ring_is_hollow() -> None:
    field = shapes.ring(COLUMNS, ROWS, (0, 0), (1, 1), 0.2)
    radius = np.hypot(COLUMNS, ROWS)
    sure = np.abs(np.abs(radius - 1) - 0.2) > 0.02
    assert ((field < 0) == (np.abs(radius - 1) < 0.2))[sure].all()


def test_union_intersection_and_blend() -> None:
    a: Field = shapes.ellipse(COLUMNS, ROWS, (-0.4, 0), (0.6, 0.6))
    b: Field = shapes.ellipse(COLUMNS, ROWS, (0.4, 0), (0.6, 0.6))
    assert ((shapes.union(a, b) < 0) == ((a < 0) | (b < 0))).all()
    assert ((shapes.intersection(a, b) < 0) == ((a < 0) & (b < 0))).all()
    soft = shapes.blend(a, b, 0.3)
    assert (soft <= shapes.union(a, b) + 1e-6).all(), "a soft seam only adds"
    far = np.abs(a - b) > 0.3
    assert np.allclose(soft[far], shapes.union(a, b)[far])
    assert (soft < shapes.union(a, b) - 0.05).any()
