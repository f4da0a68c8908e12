"""Who the images are and which classes each has."""

from __future__ import annotations

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.classes import COCO14, VOC12, ClassList, load_class_list, palette
from pipelines.datasets.coco import load_coco
from pipelines.datasets.folder import load_folder
from pipelines.datasets.voc import load_voc
from pipelines.options.sources import DatasetOptions

__all__ = ["COCO14", "VOC12", "ClassList", "Dataset", "Sample", "load_class_list", "load_dataset", "palette"]


def load_dataset(options: DatasetOptions) -> Dataset:
    """List the images and labels of a split; no image or mask is opened.

    Raises:
        UsageError: The folder, split, label file or class list is missing or not as expected.
        SsrError: Annotations cannot be read.
    """
    return {"voc": load_voc, "coco": load_coco, "folder": load_folder}[options.kind](options)
