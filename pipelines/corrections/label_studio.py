"""Label Studio's JSON: brushes and polygons of the newest annotation of each task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import numpy as np

from pipelines.corrections.base import Canvas, Correction, Outcome, Source, known_keys
from pipelines.datasets.names import check_image_id
from pipelines.errors import ImageError, SsrError
from pipelines.ops.run_lengths import decode_brush

_IMAGES = ("image", "img", "url")
_MASKS = ("brushlabels", "polygonlabels")
"""Kinds of results that are masks; the value has the class under the key of the same name."""


def tasks(source: Source, content: list[Any]) -> Iterator[Outcome]:
    """Yield the label maps of tasks that a person annotated; predictions, which this program wrote, do not count.

    Raises:
        SsrError: The content is no list of tasks.
        UsageError: A class is not in the list, or a name is unsafe.
    """
    for number, entry in enumerate(content):
        where = f"task {number}"
        task = known_keys(entry, ("data", "annotations"), f"{source.path}: {where}")
        if not isinstance(task["data"], dict) or not isinstance(task["annotations"], list):
            raise SsrError(f"{source.path}: {where}: expected Label Studio's JSON export", "export as JSON, not as JSON-MIN")
        image_id = _image_id(source, task["data"], where)
        made = [a for a in task["annotations"] if isinstance(a, dict) and not a.get("was_cancelled") and "result" in a]
        if not made:
            continue
        newest = max(made, key=lambda annotation: str(annotation.get("updated_at", "")))
        try:
            canvas = _painted(source, newest["result"], where)
            yield image_id, canvas.done() if canvas else Correction(np.zeros((0, 0), np.uint8), 0)
        except ImageError as error:
            yield image_id, ImageError(f"{where}: {error.message}", error.hint)


def _image_id(source: Source, data: dict[str, Any], where: str) -> str:
    """Return the id of a task's image: as `ssr export` wrote it, or of its address."""
    own = data.get("image_id")
    if isinstance(own, str):
        return check_image_id(own, f"{source.path}: {where}")
    address = next((data[key] for key in _IMAGES if key in data), None)
    return source.image_id(unquote(address) if isinstance(address, str) else address, where)


def _painted(source: Source, results: Any, where: str) -> Canvas | None:
    """Return the label map of an annotation; None without a mask, because only masks give the size."""
    if not isinstance(results, list):
        raise ImageError(f"expected a list of results, found a {type(results).__name__}")
    canvas: Canvas | None = None
    for result in results:
        kind = result.get("type") if isinstance(result, dict) else None
        if kind not in _MASKS:
            source.pass_over(kind)
            continue
        value, size = result.get("value"), (result.get("original_height"), result.get("original_width"))
        if not isinstance(value, dict):
            raise ImageError(f"expected a value, found {value!r:.40}")
        canvas = canvas or Canvas(size)
        if size != canvas.size:
            raise ImageError(f"expected results of one size, found {size} beside {canvas.size}")
        names = value.get(kind)
        if not isinstance(names, list) or len(names) != 1:
            raise ImageError(f"expected one class a mask, found {names!r:.60}")
        number = source.value(names[0], where)
        if kind == "brushlabels":
            canvas.paint(number, _brush(value, canvas.size))
        else:
            canvas.polygons(number, [_polygon(value, canvas.size)])
    return canvas


def _brush(value: dict[str, Any], size: tuple[int, int]) -> Any:
    rle = value.get("rle")
    if value.get("format") != "rle" or not isinstance(rle, list) or not all(isinstance(n, int) and 0 <= n < 256 for n in rle):
        raise ImageError(f"expected a brush as bytes, found {rle!r:.40}")
    try:
        return decode_brush(bytes(rle), size)
    except ValueError as error:
        raise ImageError(str(error)) from None


def _polygon(value: dict[str, Any], size: tuple[int, int]) -> list[float]:
    """Convert points in percent of the image's size to pixels."""
    points, numbers = value.get("points"), []
    for point in points if isinstance(points, list) else [None]:
        if not isinstance(point, list) or len(point) != 2 or not all(isinstance(part, int | float) for part in point):
            raise ImageError(f"expected points of a polygon, found {points!r:.40}")
        numbers += [point[0] / 100 * size[1], point[1] / 100 * size[0]]
    return numbers
