"""Common parts of the readers of corrected label maps."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.classes import ClassList
from pipelines.datasets.image import MAX_PIXELS
from pipelines.datasets.names import image_id_of
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.exports.base import IGNORE_NAME
from pipelines.ops.label_map import IGNORE_INDEX

MAX_BYTES = 1 << 31
"""Largest size of a JSON or XML in bytes, packed or not."""


@dataclass(frozen=True)
class Correction:
    """The label map of one image in a file of corrections.

    Attributes:
        label_map: ``(H, W)`` uint8, 255 = unsure; empty if the file has no object and no size.
        objects: Number of objects in it.
    """

    label_map: NDArray[np.uint8]
    objects: int


@dataclass
class Source:
    """A file of corrections, read once.

    Attributes:
        path: The file.
        classes: Class list for the names in the file.
        passed_over: Number of shapes that are no masks, by kind.
    """

    path: Path
    classes: ClassList
    passed_over: dict[str, int] = field(default_factory=dict)

    def value(self, name: object, where: str) -> int:
        """Return the value in a label map of a class name; ``_ignore`` is 255 and ``background`` 0.

        Raises:
            UsageError: There is no such class.
        """
        own = {IGNORE_NAME: IGNORE_INDEX, self.classes.label_map_names[0]: 0}
        if not isinstance(name, str):
            raise UsageError(f"{self.path}: {where}: expected a class name, found {name!r:.60}")
        if name in own:
            return own[name]
        try:
            return self.classes.index(name) + 1
        except UsageError as error:
            raise UsageError(f"{self.path}: {where}: {error.message}", error.hint) from None

    def image_id(self, name: object, where: str) -> str:
        """Return the image id of a name, path or address.

        Raises:
            UsageError: The name is unsafe, or no text.
        """
        if not isinstance(name, str):
            raise UsageError(f"{self.path}: {where}: expected the name of an image, found {name!r:.60}")
        return image_id_of(name, f"{self.path}: {where}")

    def pass_over(self, kind: object) -> None:
        """Count a shape that is no mask."""
        shown = str(kind)[:40]
        self.passed_over[shown] = self.passed_over.get(shown, 0) + 1


Outcome = tuple[str, Correction | ImageError]
"""Id of an image, and its label map or the reason why there is none."""


class Canvas:
    """A label map on which objects are painted, later ones over earlier ones.

    Args:
        size: ``(H, W)`` in the file.

    Raises:
        ImageError: The size is no size of an image.
    """

    def __init__(self, size: tuple[object, object]) -> None:
        height, width = size
        if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1 or height * width > MAX_PIXELS:
            raise ImageError(f"expected the size of an image, found {height!r:.20} x {width!r:.20}")
        self.size = (height, width)
        self.label_map = np.zeros(self.size, np.uint8)
        self.objects = 0

    def paint(self, value: int, mask: NDArray[np.bool_]) -> None:
        """Paint the pixels of a mask ``(H, W)`` with a value."""
        self.label_map[mask] = value
        self.objects += bool(mask.any())

    def polygons(self, value: int, rings: Iterable[Any]) -> None:
        """Paint the union of polygons, filled as COCO's own code does.

        Args:
            value: Value to paint.
            rings: Corners ``x, y, x, y, ...`` of each polygon in pixels.

        Raises:
            ImageError: A ring is no polygon.
        """
        from pycocotools import mask as coco

        clean = []
        for ring in rings:
            sound = isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0
            if not sound or not all(isinstance(number, int | float) and math.isfinite(number) for number in ring):
                raise ImageError(f"expected a polygon of three points or more, found {ring!r:.60}")
            corners = np.clip(np.asarray(ring, np.float64).reshape(-1, 2), 0, self.size[::-1])  # C code requires this range
            clean.append(corners.ravel().tolist())
        if clean:
            codes = coco.frPyObjects(clean, *self.size)
            self.paint(value, coco.decode(coco.merge(codes)).astype(bool))

    def done(self) -> Correction:
        """Return the finished label map."""
        return Correction(self.label_map, self.objects)


def parse_json(data: bytes, path: Path) -> Any:
    """Parse JSON in which no object has a key twice.

    Raises:
        SsrError: The data is no such JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        item = dict(pairs)
        if len(item) != len(pairs):
            raise ValueError("a key occurs twice in one object")
        return item

    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise SsrError(f"{path}: broken JSON: {error!s:.160}") from None


def whole_number(text: object, where: str) -> int:
    """Return the whole number in an XML attribute or in JSON.

    Raises:
        ImageError: The value is no whole number.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if isinstance(text, str) and text.strip().isascii() and text.strip().removeprefix("-").isdigit() and len(text) < 12:
        return int(text)
    raise ImageError(f"{where}: expected a whole number, found {text!r:.40}")


def known_keys(item: object, keys: Collection[str], where: str) -> dict[str, Any]:
    """Return an object of JSON after a check that it has some keys.

    Raises:
        SsrError: The item is no object, or lacks a key.
    """
    if not isinstance(item, dict):
        raise SsrError(f"{where}: expected an object, found a {type(item).__name__}")
    missing = next((key for key in keys if key not in item), None)
    if missing is not None:
        raise SsrError(f"{where}: expected {missing!r}, found {', '.join(map(repr, item))!s:.80}")
    return item
