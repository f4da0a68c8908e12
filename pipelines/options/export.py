"""Options of ``[export]`` and ``[import]``: label maps for other tools, and what people corrected in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.sources import Options, option

FORMATS = ("coco", "cvat", "cvat-xml", "label-studio", "yolo-seg", "yolo-sem", "voc", "mmseg", "fiftyone", "hf")
"""Formats that the package ships."""


class ExportOptions(Options):
    """``[export]``: label maps in the format of another tool."""

    format: Annotated[str, option(f"Format to write: {', '.join(FORMATS)}.", flag="FORMAT", choices=FORMATS)] = ""
    what: Annotated[
        str,
        option(
            "Label maps to write: masks, predictions, retrained or corrected of WORK, or a folder of PNGs.",
            flag="WHAT",
            choices=("masks", "predictions", "retrained", "corrected"),
        ),
    ] = "masks"
    output: Annotated[
        Path | None,
        option("Folder to write; without it, a folder of WORK/exports/ that is named after format, split and label maps."),
    ] = None
    images: Annotated[
        Path | None, option("Folder of the images that the label maps belong to, instead of a split; no dataset is needed.")
    ] = None
    ignore: Annotated[
        Literal["auto", "background", "class", "keep"],
        option(
            "What unsure pixels (255) become: background, a class _ignore (class), or 255 (keep); auto is what "
            "the format is read with."
        ),
    ] = "auto"
    instances: Annotated[
        bool, option("Make an object of each connected region; when off, all pixels of a class in an image are one object.")
    ] = False
    min_area: Annotated[int, Field(ge=0, description="Connected regions of fewer pixels become background.")] = 0
    polygons: Annotated[bool, option("coco: write polygons in place of run lengths; needs rasterio (ssr-wsss[vector]).")] = (
        False
    )
    simplify: Annotated[
        float, Field(ge=0, description="Polygons: pixels by which an outline may move to have fewer corners; 0 keeps it exact.")
    ] = 0.0
    holes: Annotated[
        Literal["bridge", "fill", "refuse"],
        option(
            "Polygons with holes: bridge cuts each hole in by a line of no width, fill loses the holes, refuse "
            "leaves the image out."
        ),
    ] = "bridge"
    photos: Annotated[
        Literal["link", "copy", "none"],
        option(
            "Images in formats that have them: link makes links, for this machine; copy makes copies; none writes"
            " label maps alone."
        ),
    ] = "link"
    image_url: Annotated[
        str, option("label-studio: what precedes an image's file name, such as https://host/photos/; empty means local files.")
    ] = ""
    shard: Annotated[str | None, option("Write a stable share of the images, such as 0/4, as an export of its own.")] = None


class ImportOptions(Options):
    """``[import]``: label maps that people corrected in another tool."""

    empty: Annotated[
        Literal["skip", "background"],
        option(
            "Images without any object in the file: skip means that they were not corrected, background that "
            "nothing is in them."
        ),
    ] = "skip"
