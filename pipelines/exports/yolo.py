"""Ultralytics YOLO: instances as polygons in text files, and semantic segmentation from masks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from pipelines.exports.base import Add, Format, Item, Plan, place_photo, png_bytes, text_files, write_bytes
from pipelines.exports.polygon_parts import PolygonParts
from pipelines.ops.polygons import Ring
from pipelines.ops.regions import regions


@contextmanager
def write_polygons(plan: Plan) -> Iterator[Add]:
    """Write ``labels/SPLIT/ID.txt``, ``images/SPLIT/`` and ``data.yaml``.

    A line is a class from 0 and one polygon in shares of the image's size. An object of several parts takes several lines,
    because readers draw the bridge between two parts as a line of a pixel.
    """
    parts = PolygonParts(plan)

    def add(item: Item) -> None:
        height, width = item.label_map.shape
        lines = [
            _line(region.value - 1, ring / (width, height))
            for region in regions(item.label_map, plan.options.instances)
            for ring in parts.of(region, item)
        ]
        write_bytes(plan.folder / "labels" / plan.split / f"{item.image_id}.txt", "".join(lines).encode())
        place_photo(plan, item, plan.folder / "images" / plan.split / item.file_name)

    yield add
    _write_yaml(plan, plan.names[1:])
    parts.say()


def _line(index: int, ring: Ring) -> str:
    numbers = np.clip(ring, 0, 1).ravel()
    return f"{index} {' '.join(f'{number:.6g}' for number in numbers)}\n"


@contextmanager
def write_masks(plan: Plan) -> Iterator[Add]:
    """Write ``masks/SPLIT/ID.png``, ``images/SPLIT/`` and ``data.yaml``.

    Masks are greyscale, because OpenCV would read a palette as colours.
    """

    def add(item: Item) -> None:
        write_bytes(plan.folder / "masks" / plan.split / f"{item.image_id}.png", png_bytes(item.label_map, None))
        place_photo(plan, item, plan.folder / "images" / plan.split / item.file_name)

    yield add
    _write_yaml(plan, plan.names, "masks_dir: masks\n")


def _write_yaml(plan: Plan, names: Sequence[str], more: str = "") -> None:
    with text_files(plan.folder, "data.yaml") as (file,):
        file.write(f"path: {json.dumps(str(plan.place), ensure_ascii=False)}\n")
        file.write(
            f"train: images/{plan.split}\nval: images/{plan.split}  # the same images: name another split here\n{more}names:\n"
        )
        file.writelines(f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in enumerate(names))


POLYGONS = Format(write_polygons, ("background", "class"), takes=("instances", "simplify", "holes"), photos=True)
"""See `write_polygons`."""

MASKS = Format(write_masks, ("keep", "background", "class"), photos=True)
"""See `write_masks`."""
