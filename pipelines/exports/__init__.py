"""Label maps in the formats of other tools, one file for each format or family of formats."""

from __future__ import annotations

from pipelines.exports import coco, cvat, cvat_xml, folders, label_studio, yolo
from pipelines.exports.base import Format
from pipelines.plugins import Table, table_entry

__all__ = ["EXPORTS", "format_of"]

EXPORTS: Table[Format] = Table(
    "format",
    Format,
    {
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
    },
)
"""Formats by name, which is the argument FORMAT; a plugin may add others."""


def format_of(name: str) -> Format:
    """Return the format of a name.

    Raises:
        UsageError: There is no such format.
    """
    return table_entry(EXPORTS, name, "FORMAT")
