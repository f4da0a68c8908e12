"""Reads exports with libraries that do not go with ours in one environment; run by `test_readers.py`, imports none of ours.

``python readers.py FORMAT FOLDER OUT.npz``: label maps by image id, and the class names as ``names``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Maps = dict[str, Any]


def datumaro(folder: Path, kind: str) -> tuple[Maps, list[str]]:
    import datumaro as dm

    dataset = dm.Dataset.import_from(str(folder), kind)
    names = [entry.name for entry in dataset.categories()[dm.AnnotationType.label]]
    maps: Maps = {}
    for item in dataset:
        masks = [annotation for annotation in item.annotations if annotation.type == dm.AnnotationType.mask]
        size = masks[0].image.shape if masks else (0, 0)
        maps[item.id] = np.zeros(size, np.uint8)
        for mask in masks:
            maps[item.id][mask.image > 0] = mask.label + ("background" not in names)
    return maps, names


def cvat(folder: Path) -> tuple[Maps, list[str]]:
    with tempfile.TemporaryDirectory() as place:
        with zipfile.ZipFile(folder / "masks.zip") as archive:
            archive.extractall(place)
        return datumaro(Path(place), "voc_segmentation")


def label_studio(folder: Path) -> tuple[Maps, list[str]]:
    from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
    from label_studio_sdk.converter.brush import decode_rle

    (tool,) = parse_config((folder / "interface.xml").read_text(encoding="utf-8")).values()
    maps: Maps = {}
    for task in json.loads((folder / "tasks.json").read_text(encoding="utf-8")):
        found = maps[task["data"]["image_id"]] = np.zeros((0, 0), np.uint8)
        for result in task["predictions"][0]["result"]:
            size = result["original_height"], result["original_width"]
            found = np.zeros(size, np.uint8) if not found.size else found
            brush = np.asarray(decode_rle(result["value"]["rle"]), np.uint8).reshape(*size, 4)[..., 3]
            found[brush > 0] = tool["labels"].index(result["value"]["brushlabels"][0]) + 1
        maps[task["data"]["image_id"]] = found
    return maps, tool["labels"]


def yolo(folder: Path) -> tuple[Maps, list[str]]:
    import supervision as sv

    (split,) = (folder / "images").iterdir()
    dataset = sv.DetectionDataset.from_yolo(
        str(split), str(folder / "labels" / split.name), str(folder / "data.yaml"), force_masks=True
    )
    maps: Maps = {}
    for path, image, found in dataset:
        label_map = maps[Path(path).stem] = np.zeros(image.shape[:2], np.uint8)
        for mask, index in zip(found.mask if found.mask is not None else (), found.class_id, strict=True):
            label_map[mask] = index + 1
    return maps, dataset.classes


READERS = {
    "cvat": cvat,
    "coco": lambda folder: datumaro(folder, "coco_instances"),
    "label-studio": label_studio,
    "yolo-seg": yolo,
}

if __name__ == "__main__":
    found, names = READERS[sys.argv[1]](Path(sys.argv[2]))
    np.savez(sys.argv[3], names=np.array(names), ids=np.array(list(found)), **{str(n): m for n, m in enumerate(found.values())})
