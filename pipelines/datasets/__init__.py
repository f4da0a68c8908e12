"""Who the images are and which classes each has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.classes import COCO14, VOC12, ClassList, load_class_list, palette
from pipelines.datasets.coco import load_coco
from pipelines.datasets.folder import load_folder
from pipelines.datasets.voc import load_voc
from pipelines.options.sources import DatasetOptions
from pipelines.plugins import table_entry

__all__ = [
    "COCO14", "KINDS", "VOC12", "ClassList", "Dataset", "Kind", "Sample", "kind_of", "load_class_list",
    "load_dataset", "palette",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A layout of datasets.

    Attributes:
        load: Lists the images and labels of a split; it opens no image and no mask.
        class_list: Used unless the options name one; None if the classes are found with the images.
    """

    load: Callable[[DatasetOptions], Dataset]
    class_list: ClassList | None = None


KINDS = {"voc": Kind(load_voc, VOC12), "coco": Kind(load_coco, COCO14), "folder": Kind(load_folder)}
"""Every layout by its name, which is the argument DATASET; a plugin adds its own."""


def kind_of(options: DatasetOptions) -> Kind:
    """The layout that options name.

    Raises:
        UsageError: There is none of this name.
    """
    return table_entry(KINDS, options.kind, "dataset kind", "DATASET")


def load_dataset(options: DatasetOptions) -> Dataset:
    """List the images and labels of a split; no image or mask is opened.

    Raises:
        UsageError: The kind, folder, split, label file or class list is missing or not as expected.
        SsrError: Annotations cannot be read.
    """
    return kind_of(options).load(options)
