"""The datasets: their images, and the classes of each image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.classes import COCO14, VOC12, ClassList, load_class_list, palette
from pipelines.datasets.coco import coco_splits, load_coco
from pipelines.datasets.folder import load_folder
from pipelines.datasets.names import check_image_id
from pipelines.datasets.voc import load_voc, voc_splits
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions
from pipelines.plugins import Table, load_plugins, table_entry

__all__ = [
    "COCO14", "KINDS", "VOC12", "ClassList", "Dataset", "Kind", "Sample", "kind_of", "layout_of", "load_class_list",
    "load_dataset", "palette", "split_in",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A layout of datasets.

    Attributes:
        load: Lists the images and labels of a split, without opening any image or mask.
        class_list: Class list that is used unless the options name one; None if the labels name the classes.
        splits: Returns the names of the splits of a folder of this layout, and None for any other folder, by which it is
            recognised.
    """

    load: Callable[[DatasetOptions], Dataset]
    class_list: ClassList | None = None
    splits: Callable[[Path], tuple[str, ...] | None] | None = None


KINDS: Table[Kind] = Table(
    "dataset kind",
    Kind,
    {
        "voc": Kind(load_voc, VOC12, voc_splits),
        "coco": Kind(load_coco, COCO14, coco_splits),
        "folder": Kind(load_folder),
    },
)
"""Every layout by its name, which is the argument DATASET. A plugin adds its own."""


def kind_of(options: DatasetOptions) -> Kind:
    """Return the layout that options name.

    Raises:
        UsageError: There is no layout of this name.
    """
    return table_entry(KINDS, options.kind, "DATASET")


def layout_of(root: Path) -> str:
    """Return the name of a folder's layout: the first layout that recognises it, those of plugins included, else ``folder``."""
    load_plugins()
    return next((name for name, kind in KINDS.items() if kind.splits is not None and kind.splits(root) is not None), "folder")


def split_in(root: Path, kind: Kind) -> str:
    """Return the split to begin with: the training split if there is one, else the validation split, else the only split."""
    there = (kind.splits(root) if kind.splits else None) or ()
    usual = {name.removesuffix("2014").removesuffix("2017") for name in there}
    found = next((name for name in ("train", "trainval", "val") if name in usual), None)
    return found or (there[0] if len(there) == 1 else "train")


def load_dataset(options: DatasetOptions) -> Dataset:
    """List the images and labels of a split, without opening any image or mask.

    Raises:
        UsageError: The kind, folder, split, label file or class list is missing or not as expected.
        SsrError: Annotations cannot be read.
    """
    if "\0" in str(options.root):  # glob raises on it, where `Path.is_dir` says no
        raise UsageError("expected a dataset folder, found a null character in its name", "--root")
    found = kind_of(options).load(options)
    if options.kind not in KINDS.shipped:
        _check(found, f"dataset kind {options.kind!r}")
    return found


def _check(dataset: Dataset, title: str) -> None:
    """Check the images that a plugin lists.

    Raises:
        UsageError: There is none, an id is unsafe or stands twice, a path is none, or labels are not as `Sample` says.
    """
    if not isinstance(dataset, Dataset) or not dataset.samples:
        raise UsageError(f"{title}: expected a Dataset of one image or more, found {dataset!r:.80}")
    count, ids = len(dataset.classes.names), set()
    for sample in dataset.samples:
        check_image_id(sample.image_id, title)
        if sample.image_id in ids:
            raise UsageError(f"{title}: two images have the id {sample.image_id!r}")
        ids.add(sample.image_id)
        if not isinstance(sample.image_path, Path):
            raise UsageError(f"{title}: expected a Path of {sample.image_id}, found {sample.image_path!r:.80}")
        ascending = isinstance(sample.labels, tuple) and list(sample.labels) == sorted(set(sample.labels))
        if not ascending or not set(sample.labels).issubset(range(count)):
            expected = f"labels in a tuple, ascending, from 0 to {count - 1}"
            raise UsageError(f"{title}: expected {expected}, found {sample.labels!r:.80} of {sample.image_id}")
