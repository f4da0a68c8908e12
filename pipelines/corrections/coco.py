"""COCO instances with polygons or run lengths, packed or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.corrections.base import Canvas, Outcome, Source, known_keys
from pipelines.errors import ImageError, SsrError
from pipelines.ops.run_lengths import from_run_lengths


def instances(source: Source, content: dict[str, Any]) -> Iterator[Outcome]:
    """Yield the label maps of an instances JSON; later annotations are painted over earlier ones.

    Raises:
        SsrError: The content is no instances JSON.
        UsageError: A class is not in the list, or a name is unsafe.
    """
    where = str(source.path)
    parts = ("images", "annotations", "categories")
    content = known_keys(content, parts, where)
    for part in parts:
        if not isinstance(content[part], list):
            raise SsrError(f"{where}: {part}: expected a list, found a {type(content[part]).__name__}")
    names = {}
    for number, item in enumerate(content["categories"]):
        item = known_keys(item, ("id", "name"), f"{where}: categories[{number}]")
        names[_key(item["id"], where)] = item["name"]
    by_image: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for number, item in enumerate(content["annotations"]):
        item = known_keys(item, ("image_id", "category_id"), f"{where}: annotations[{number}]")
        by_image.setdefault(_key(item["image_id"], where), []).append((number, item))
    values = {key: source.value(names[key], "categories") for key in _used(source, names, by_image)}
    for number, item in enumerate(content["images"]):
        item = known_keys(item, ("id", "file_name", "width", "height"), f"{where}: images[{number}]")
        image_id = source.image_id(item["file_name"], f"images[{number}]")
        annotations = by_image.get(_key(item["id"], where), [])
        try:
            canvas = Canvas((item["height"], item["width"]))
            for place, annotation in annotations:
                _paint(source, canvas, values[annotation["category_id"]], annotation.get("segmentation"), place)
            yield image_id, canvas.done()
        except ImageError as error:
            yield image_id, ImageError(f"{item['file_name']!s:.80}: {error.message}", error.hint)


def _key(value: object, where: str) -> int | str:
    if not isinstance(value, int | str):
        raise SsrError(f"{where}: expected an id, found {value!r:.60}")
    return value


def _used(source: Source, names: dict[Any, Any], by_image: dict[Any, list[tuple[int, dict[str, Any]]]]) -> set[Any]:
    used = {_key(item["category_id"], str(source.path)) for items in by_image.values() for _, item in items}
    unknown = next((key for key in used if key not in names), None)
    if unknown is not None:
        raise SsrError(f"{source.path}: category_id {unknown!r:.60} is not among the categories")
    return used


def _paint(source: Source, canvas: Canvas, value: int, segmentation: Any, place: int) -> None:
    if isinstance(segmentation, dict):
        canvas.paint(value, run_length_mask(segmentation, canvas.size))
    elif isinstance(segmentation, list) and segmentation:
        canvas.polygons(value, segmentation)
    elif segmentation is None or segmentation == []:
        source.pass_over("box")
    else:
        raise ImageError(f"annotations[{place}]: expected polygons or run lengths, found {segmentation!r:.60}")


def run_length_mask(code: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode COCO's run lengths, which go down the columns, to ``(H, W)`` bool.

    Raises:
        ImageError: The run lengths are invalid, or of another size.
    """
    counts = code.get("counts")
    if code.get("size") != list(size):
        raise ImageError(f"expected run lengths of {list(size)}, found {code.get('size')!r:.40}")
    try:
        numbers = _unpacked(counts) if isinstance(counts, str) else counts
        if not isinstance(numbers, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            raise ValueError(f"expected run lengths, found {counts!r:.40}")
        return from_run_lengths(numbers, (size[1], size[0])).T
    except ValueError as error:
        raise ImageError(str(error)) from None


def _unpacked(text: str) -> list[int]:
    """Decode COCO's packed counts: 5 bits a character, lowest first; from the third on, differences to the last but one."""
    numbers: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError(f"expected packed run lengths, found {character!r}")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            numbers.append(number + (numbers[-2] if len(numbers) > 2 else 0))
            number = shift = 0
    if shift:
        raise ValueError("packed run lengths are cut off")
    return numbers
