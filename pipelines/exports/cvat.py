"""CVAT's "Segmentation mask 1.1": a zip of palette PNGs and the list of their labels."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.classes import palette
from pipelines.errors import ImageError
from pipelines.exports.base import Add, Format, Item, Plan, png_bytes, refuse_names, text_files
from pipelines.ops.regions import regions

MAX_OBJECTS = 254
"""Largest number of objects that a PNG of one channel can number; 255 is left out."""


@contextmanager
def write(plan: Plan) -> Iterator[Add]:
    """Write ``masks.zip``, and ``labels.json`` for the raw editor of a new task's labels."""
    refuse_names(
        plan, lambda name: ":" in name or name.startswith("#"), "labelmap.txt uses ':' and '#' as signs", "ssr export cvat-xml"
    )
    with text_files(plan.folder, ".names") as (names,), zipfile.ZipFile(plan.folder / "masks.zip", "w") as archive:

        def add(item: Item) -> None:
            objects = objects_of(item.label_map, plan.options.instances)
            put(archive, f"SegmentationClass/{item.image_id}.png", png_bytes(item.label_map, palette()))
            put(archive, f"SegmentationObject/{item.image_id}.png", png_bytes(objects, palette()))
            names.write(f"{item.image_id}\n")

        yield add
        names.flush()
        rows = zip(plan.names, plan.colours, strict=True)
        labels = "".join(f"{name}:{red},{green},{blue}::\n" for name, (red, green, blue) in rows)
        put(archive, "labelmap.txt", f"# label:color_rgb:parts:actions\n{labels}".encode())
        put(archive, "ImageSets/Segmentation/default.txt", (plan.folder / ".names").read_bytes())
    (plan.folder / ".names").unlink()
    write_labels(plan)


def write_labels(plan: Plan) -> None:
    """Write ``labels.json`` for CVAT's raw editor of labels, because a task needs labels of these names."""
    with text_files(plan.folder, "labels.json") as (file,):
        labels = [{"name": name, "color": colour, "attributes": []} for name, colour in plan.labels]
        file.write(json.dumps(labels, ensure_ascii=False, indent=1) + "\n")
    plan.said.append(
        f"the task needs labels of the same names: paste {plan.place / 'labels.json'} into the raw editor of its labels"
    )


def put(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to an archive with a fixed time, so that equal files give equal bytes; PNGs are not compressed again."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content, zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED)


def objects_of(label_map: NDArray[np.uint8], instances: bool) -> NDArray[np.uint8]:
    """Return each pixel's object number, 0 for background; without these, CVAT would take background for an object."""
    numbers = np.zeros_like(label_map)
    for number, region in enumerate(regions(label_map, instances), start=1):
        if number > MAX_OBJECTS:
            raise ImageError(f"expected at most {MAX_OBJECTS} connected regions, found more", "--min-area, or --no-instances")
        height, width = region.inside.shape
        numbers[region.top : region.top + height, region.left : region.left + width][region.inside] = number
    return numbers


FORMAT = Format(write, ("background", "class"), takes=("instances",))
"""See `write`. CVAT does not accept 255."""
