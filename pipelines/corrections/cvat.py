"""CVAT's "Segmentation mask 1.1" (a zip of colours or indices) and its XML for images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from numpy.typing import NDArray
from PIL import Image

from pipelines.corrections.archive import MAX_PICTURE, Archive
from pipelines.corrections.base import Canvas, Correction, Outcome, Source, whole_number
from pipelines.datasets.image import MAX_PIXELS
from pipelines.errors import ImageError, SsrError
from pipelines.ops.run_lengths import from_run_lengths

MASKS = "SegmentationClass/"
LABELS = "labelmap.txt"


def masks(source: Source, archive: Archive) -> Iterator[Outcome]:
    """Yield the label maps of a zip of masks.

    Raises:
        SsrError: ``labelmap.txt`` is invalid.
        UsageError: A class is not in the list, or a name is unsafe.
    """
    values, colours = _labels(source, archive)
    codes = _codes(colours)
    order = np.argsort(codes)
    for name in archive.names(MASKS, ".png"):
        stem = name.removeprefix(MASKS)
        image_id = source.image_id(stem, f"entry {name!r:.80}")
        try:
            indices = _indices(archive.read(name, MAX_PICTURE), codes, order)  # (H, W)
            label_map = values[indices]
            yield image_id, Correction(label_map, len(np.unique(label_map[label_map > 0])))
        except SsrError as error:
            yield image_id, ImageError(f"{stem}: {error.message}", error.hint)


def _labels(source: Source, archive: Archive) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the values in label maps ``(L,)`` and colours ``(L, 3)``, in the order of ``labelmap.txt``."""
    try:
        lines = archive.read(LABELS, 1 << 22).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise SsrError(f"{source.path}: {LABELS}: expected UTF-8, found other bytes") from None
    values: list[int] = []
    colours: list[list[int]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split(":")
        rgb = parts[1].split(",") if len(parts) > 1 else []
        if len(rgb) != 3 or not all(part.strip().isdigit() and len(part) < 5 and int(part) < 256 for part in rgb):
            raise SsrError(f"{source.path}: {LABELS}:{number}: expected name:red,green,blue::, found {line!r:.60}")
        values.append(source.value(parts[0].strip(), f"{LABELS}:{number}"))
        colours.append([int(part) for part in rgb])
    if not values or len(values) > 256:
        raise SsrError(f"{source.path}: {LABELS}: expected 1 to 256 labels, found {len(values)}")
    return np.asarray(values, np.uint8), np.asarray(colours, np.uint8)


def _codes(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    codes: NDArray[np.int64] = rgb.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return codes


def _indices(data: bytes, codes: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return places in the list of labels, ``(H, W)``, from colours or from indices."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ImageError(f"expected at most {MAX_PIXELS} pixels, found {picture.width} x {picture.height}")
            grey = picture.mode == "L"
            stored = np.asarray(picture) if picture.mode in {"L", "P"} else None
            shown = None if grey else np.asarray(picture.convert("RGB"))  # (H, W, 3)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on a broken file
        raise ImageError(f"expected a PNG, found one that cannot be read: {type(error).__name__}") from None
    if shown is not None:
        found = _codes(shown)  # (H, W)
        nearest = np.searchsorted(codes, found, sorter=order).clip(max=len(codes) - 1)
        places: NDArray[np.int64] = np.take(order, nearest)  # (H, W)
        unknown = codes[places] != found
        if not unknown.any():
            return places
        if stored is None:
            colour = shown[unknown][0].tolist()
            raise ImageError(f"expected colours of {LABELS}, found {colour}")
    assert stored is not None  # noqa: S101 - greys, or a palette of other colours
    if int(stored.max()) >= len(codes):
        raise ImageError(f"expected indices below {len(codes)}, found {int(stored.max())}")
    return stored.astype(np.int64)


def images(source: Source, data: bytes) -> Iterator[Outcome]:
    """Yield the label maps of CVAT's XML for images, one at a time.

    Raises:
        SsrError: The data is no such XML.
        UsageError: A class is not in the list, or a name is unsafe.
    """
    try:
        root: Element | None = None
        for event, element in ElementTree.iterparse(io.BytesIO(data), events=("start", "end"), forbid_dtd=True):
            if root is None:
                root = element
                if element.tag != "annotations":
                    raise SsrError(f"{source.path}: expected CVAT's <annotations>, found <{element.tag!s:.40}>")
            if event == "end" and element.tag == "image":
                yield _image(source, element)
                root.clear()
            elif event == "end" and element.tag == "track":
                raise SsrError(f"{source.path}: expected images, found a track of a video", "export as CVAT for images 1.1")
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise SsrError(f"{source.path}: broken XML: {type(error).__name__}: {error!s:.120}") from None


def _image(source: Source, element: Element) -> Outcome:
    name = element.get("name")
    image_id = source.image_id(name, "image")
    try:
        canvas = Canvas(_pair(element, "height", "width"))
        for shape in sorted(element, key=lambda shape: whole_number(shape.get("z_order", "0"), "z_order")):  # a stable sort
            if shape.tag == "mask":
                canvas.paint(source.value(shape.get("label"), "mask"), _mask(shape, canvas.size))
            elif shape.tag == "polygon":
                canvas.polygons(source.value(shape.get("label"), "polygon"), [_points(shape)])
            elif shape.tag != "tag":
                source.pass_over(shape.tag)
    except ImageError as error:
        return image_id, ImageError(f"{name!s:.80}: {error.message}", error.hint)
    return image_id, canvas.done()


def _pair(element: Element, first: str, second: str) -> tuple[int, int]:
    return whole_number(element.get(first), first), whole_number(element.get(second), second)


def _mask(shape: Element, size: tuple[int, int]) -> NDArray[np.bool_]:
    top, left = _pair(shape, "top", "left")
    height, width = _pair(shape, "height", "width")
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise ImageError(f"expected a mask within {size[1]} x {size[0]}, found {width} x {height} at {left}, {top}")
    mask = np.zeros(size, dtype=bool)
    runs = [whole_number(run, "rle") for run in (shape.get("rle") or "").split(",")]
    try:
        mask[top : top + height, left : left + width] = from_run_lengths(runs, (height, width))
    except ValueError as error:
        raise ImageError(str(error)) from None
    return mask


def _points(shape: Element) -> list[Any]:
    try:
        return [float(number) for point in (shape.get("points") or "").split(";") for number in point.split(",")]
    except ValueError:
        raise ImageError(f"expected points x,y;x,y, found {shape.get('points')!r:.60}") from None
