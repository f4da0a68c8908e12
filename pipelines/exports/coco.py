"""COCO instances: one JSON with objects as run lengths or polygons."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipelines.exports.base import Add, Format, Item, JsonArray, Plan, place_photo, text_files
from pipelines.exports.polygon_parts import PolygonParts
from pipelines.ops.regions import Region, regions
from pipelines.stores.shard import Shard


@contextmanager
def write(plan: Plan) -> Iterator[Add]:
    """Write ``annotations/instances_SPLIT.json``, and the images into ``images/``.

    Categories have the numbers of label maps, from 1. No two shards use the same number for an image or an annotation, so their
    files can be joined.
    """
    folder, parts = plan.folder / "annotations", PolygonParts(plan)
    shard = Shard.parse(plan.options.shard) if plan.options.shard else Shard(0, 1)
    with text_files(folder, ".images", ".annotations") as (image_file, annotation_file):
        images, annotations, made = JsonArray(image_file), JsonArray(annotation_file), 0

        def add(item: Item) -> None:
            nonlocal made
            height, width = item.label_map.shape
            found = [_annotation(region, item, parts) for region in regions(item.label_map, plan.options.instances)]
            place_photo(plan, item, plan.folder / "images" / item.file_name)
            images.add({"id": item.number, "file_name": item.file_name, "width": width, "height": height})
            for annotation in found:
                annotations.add({"id": made * shard.count + shard.index + 1, **annotation})
                made += 1

        yield add
    with (folder / f"instances_{plan.split}.json").open("w", encoding="utf-8") as out:
        categories = json.dumps(_categories(plan), ensure_ascii=False, indent=1)
        out.write(f'{{"categories": {categories},\n"images": [\n')
        for name, after in ((".images", '\n],\n"annotations": [\n'), (".annotations", "\n]}\n")):
            with (folder / name).open(encoding="utf-8") as entries:
                shutil.copyfileobj(entries, out)
            out.write(after)
            (folder / name).unlink()
    parts.say()


def _categories(plan: Plan) -> list[dict[str, Any]]:
    supers = plan.classes.supers
    return [
        {"id": value, "name": name, **({"supercategory": supers[value - 1]} if value <= len(supers) else {})}
        for value, name in enumerate(plan.names)
        if value
    ]


def _annotation(region: Region, item: Item, parts: PolygonParts) -> dict[str, Any]:
    from pycocotools import mask as coco

    size = (item.label_map.shape[0], item.label_map.shape[1])
    annotation: dict[str, Any] = {"image_id": item.number, "category_id": region.value, "iscrowd": 0}
    if parts.plan.options.polygons:
        polygons = parts.of(region, item)
        annotation["segmentation"] = [ring.round(2).ravel().tolist() for ring in polygons]
        code = coco.merge(coco.frPyObjects(annotation["segmentation"], *size))
    else:
        code = coco.encode(np.asfortranarray(region.full(size).astype(np.uint8)))
        annotation["segmentation"] = {"size": list(size), "counts": code["counts"].decode("ascii")}
    return annotation | {"area": int(coco.area(code)), "bbox": [float(value) for value in coco.toBbox(code)]}


FORMAT = Format(write, ("background", "class"), takes=("instances", "polygons", "simplify", "holes"), photos=True)
"""See `write`."""
