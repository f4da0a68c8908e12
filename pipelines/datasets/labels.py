"""Image-level labels from all supported sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipelines.datasets.class_names import refuse_odd_names
from pipelines.datasets.classes import VOC12, ClassList
from pipelines.datasets.coco_json import classes_of_coco, labels_from_coco, read_instances
from pipelines.datasets.exports import labels_from_folders, labels_from_yolo
from pipelines.datasets.label_files import label_names, read_label_file, select_labels, understood, write_label_file
from pipelines.datasets.mask_labels import labels_from_masks
from pipelines.datasets.onehot import read_onehot_npy
from pipelines.datasets.voc import labels_from_xml, names_in_xml
from pipelines.errors import UsageError

__all__ = [
    "BRINGS_CLASSES",
    "Converted",
    "LabelSource",
    "convert_labels",
    "label_names",
    "labels_from_coco",
    "labels_from_masks",
    "labels_from_xml",
    "read_label_file",
    "read_onehot_npy",
    "write_label_file",
]

LabelSource = Literal["xml", "coco", "masks", "csv", "npy", "folders", "yolo"]
BRINGS_CLASSES = ("folders", "yolo")
"""Sources whose class names are used unless a class list is given."""


@dataclass(frozen=True)
class Converted:
    """The labels of a source.

    Attributes:
        labels: Ascending class indices by image id.
        classes: Class list.
        understood: Notes on what was read in another form than the plain one, or passed over.
    """

    labels: dict[str, tuple[int, ...]]
    classes: ClassList
    understood: tuple[str, ...] = ()


def convert_labels(
    source: LabelSource,
    path: Path,
    classes: ClassList | None,
    ids: Sequence[str] | None = None,
    absent_is_empty: bool = False,
) -> Converted:
    """Read labels from any source.

    Args:
        source: ``xml`` and ``masks`` read a folder; ``coco`` an instances JSON; ``csv`` any label file; ``npy`` one-hot rows;
            ``folders`` images in one folder per class; ``yolo`` a dataset with YOLO's label files. ``masks`` opens ground
            truth, the others never do.
        path: The folder or file.
        classes: Class list; None takes the names of the source, which masks and one-hot rows do not have.
        ids: Ids of the images to read, in their order; None takes all.
        absent_is_empty: Whether requested images that the source lacks have no class.

    Raises:
        SsrError: The source is missing or broken, has other classes, or lacks an image.
    """
    if source in {"xml", "masks", *BRINGS_CLASSES} and not path.is_dir():
        what = {"xml": "XML files", "masks": "masks", "folders": "images", "yolo": "YOLO's label files"}[source]
        raise UsageError(f"{path}: expected a folder of {what}, found none")
    words: tuple[str, ...] = ()
    if source in BRINGS_CLASSES:
        given = None if classes is None else classes.names
        named = labels_from_folders(path) if source == "folders" else labels_from_yolo(path, given)
        classes, words = classes or _class_list(named.names, path), named.understood
        labels = {image_id: classes.indices(names, f"{path}: {image_id}") for image_id, names in named.images.items()}
    else:
        classes = classes or classes_of(source, path)
        labels, words = _read(source, path, classes, ids, absent_is_empty)
    if not labels:
        raise UsageError(f"{path}: expected labels, found none")
    labels = labels if ids is None else select_labels(labels, ids, path, absent_is_empty)
    return Converted(labels, classes, words)


def _read(
    source: LabelSource, path: Path, classes: ClassList, ids: Sequence[str] | None, absent_is_empty: bool
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    match source:
        case "xml":
            return labels_from_xml(path, classes, ids, absent_is_empty), ()
        case "masks":
            return labels_from_masks(path, classes, ids), ()
        case "coco":
            found = read_instances(path, classes)
            return {image_id: image.labels for image_id, image in found.images.items()}, found.passed_over
        case "npy":
            return read_onehot_npy(path, classes, ids), ()
        case _:
            return read_label_file(path, classes), understood(path)


def classes_of(source: LabelSource, path: Path) -> ClassList:
    """Return the class names of a source as a class list with VOC's background words.

    Raises:
        UsageError: There are no names, or they are no class names.
    """
    match source:
        case "coco":
            return classes_of_coco(path)
        case "xml":
            return _class_list(names_in_xml(path), path)
        case "csv":
            return _class_list(label_names(path), path)
        case _:
            known = ", ".join(name for name in get_args(LabelSource) if name not in {"masks", "npy"})
            raise UsageError(f"{path}: --from {source} has no class names, {known} have", "--classes FILE")


def _class_list(names: Sequence[str], where: Path) -> ClassList:
    if not names:
        raise UsageError(f"{where}: expected class names, found none", "--classes FILE")
    refuse_odd_names(names, where)
    return ClassList(tuple(names), tuple(names), VOC12.background)
