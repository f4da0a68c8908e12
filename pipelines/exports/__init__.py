"""Label maps in the formats of other tools, one file a format or a family of them."""

from __future__ import annotations

from pipelines.exports import coco, cvat, cvat_xml, folders, label_studio, yolo
from pipelines.exports.base import Format
from pipelines.plugins import table_entry

__all__ = ["EXPORTS", "format_of"]

EXPORTS: dict[str, Format] = {
    "coco": coco.FORMAT,
    "cvat": cvat.FORMAT,
    "cvat-xml": cvat_xml.FORMAT,
    "label-studio": label_studio.FORMAT,
    "yolo-seg": yolo.POLYGONS,
    "yolo-sem": yolo.MASKS,
    "voc": folders.VOC,
    "mmseg": folders.MMSEG,
    "fiftyone": folders.FIFTYONE,
    "hf": folders.HF,
}
"""Every format by its name, which is the argument FORMAT; a plugin adds its own."""


def format_of(name: str) -> Format:
    """The format of a name.

    Raises:
        UsageError: There is none of this name.
    """
    return table_entry(EXPORTS, name, "format", "FORMAT")
