"""Image-level labels from every source that the field uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipelines.datasets.classes import ClassList
from pipelines.datasets.coco import labels_from_coco
from pipelines.datasets.label_files import label_names, read_label_file, select_labels, write_label_file
from pipelines.datasets.mask_labels import labels_from_masks
from pipelines.datasets.onehot import read_onehot_npy
from pipelines.datasets.voc import labels_from_xml
from pipelines.errors import UsageError

__all__ = [
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

LabelSource = Literal["xml", "coco", "masks", "csv", "npy"]


def convert_labels(
    source: LabelSource, path: Path, classes: ClassList, ids: Sequence[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Read labels from any source.

    Args:
        source: ``xml`` and ``masks`` read a folder; ``coco`` an instances JSON; ``csv`` any label file; ``npy`` one-hot rows.
            ``masks`` opens ground truth, the others never do.
        path: That folder or file.
        classes: Class list.
        ids: Images wanted, in their order; None takes all.

    Returns:
        Ascending class indices by image id.

    Raises:
        SsrError: The source is missing or broken, knows other classes, or lacks an image.
    """
    if source in {"xml", "masks"} and not path.is_dir():
        raise UsageError(f"{path}: expected a folder of {'XML files' if source == 'xml' else 'masks'}, found none")
    match source:
        case "xml":
            labels = labels_from_xml(path, classes, ids)
        case "masks":
            labels = labels_from_masks(path, classes, ids)
        case "coco":
            labels = labels_from_coco(path, classes)
        case "csv":
            labels = read_label_file(path, classes)
        case "npy":
            labels = read_onehot_npy(path, classes)
    if not labels:
        raise UsageError(f"{path}: expected labels, found none")
    return labels if ids is None else select_labels(labels, ids, path)
