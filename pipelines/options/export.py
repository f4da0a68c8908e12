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

    format: Annotated[str, option("format to write", flag="FORMAT", choices=FORMATS)] = ""
    what: Annotated[
        str,
        option(
            "label maps: masks, predictions, retrained or corrected of WORK, or a folder of PNGs",
            flag="WHAT",
            choices=("masks", "predictions", "retrained", "corrected"),
        ),
    ] = "masks"
    output: Annotated[
        Path | None, option("folder to write; without it, WORK/exports/, then format, split and what is not masks")
    ] = None
    images: Annotated[
        Path | None, option("folder of images that the label maps belong to, instead of a split; needs no dataset")
    ] = None
    ignore: Annotated[
        Literal["auto", "background", "class", "keep"],
        option("unsure pixels (255): background; class = a class _ignore; keep = 255; auto = what the format is read with"),
    ] = "auto"
    instances: Annotated[bool, option("each connected region is an object; off: all pixels of a class in an image are one")] = (
        False
    )
    min_area: Annotated[int, Field(ge=0, description="connected regions of fewer pixels become background")] = 0
    polygons: Annotated[bool, option("coco: polygons in place of run lengths; needs rasterio (ssr[vector])")] = False
    simplify: Annotated[
        float, Field(ge=0, description="polygons: pixels by which an outline may move to have fewer corners; 0 = exact")
    ] = 0.0
    holes: Annotated[
        Literal["bridge", "fill", "refuse"],
        option(
            "polygons: bridge = holes are cut in by lines of no width; fill = they are lost; refuse = the image is left out"
        ),
    ] = "bridge"
    photos: Annotated[
        Literal["link", "copy", "none"],
        option("formats with images: link = links to them, for this machine; copy = copies; none = label maps alone"),
    ] = "link"
    image_url: Annotated[
        str, option("label-studio: what precedes an image's file name, such as https://host/photos/; empty = local files")
    ] = ""
    shard: Annotated[str | None, option("a stable share of the images, e.g. 0/4, as an export of its own")] = None


class ImportOptions(Options):
    """``[import]``: label maps that people corrected in another tool."""

    empty: Annotated[
        Literal["skip", "background"],
        option("images without any object in the file: skip = not corrected; background = nothing is in them"),
    ] = "skip"
