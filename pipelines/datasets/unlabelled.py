"""Listing of the images of a dataset without their labels."""

from __future__ import annotations

from dataclasses import replace

from pipelines.datasets import ClassList, Dataset, Sample, kind_of, load_class_list, load_dataset
from pipelines.datasets.folder import label_files_in, photos_of, split_of
from pipelines.datasets.image_files import ImageFiles
from pipelines.datasets.names import check_image_id
from pipelines.datasets.splits import parse_split
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions


def load_unlabelled(options: DatasetOptions) -> Dataset:
    """List the images of a split without labels.

    A folder then needs no label file: without a split file, all its images are the split. For other layouts, the loader reads
    the labels, and they are removed.

    Raises:
        UsageError: There are no images, or no class list, neither in the options nor of the layout.
    """
    if options.kind != "folder":
        return without_labels(load_dataset(options.model_copy(update={"labels": None, "absent_is_empty": True})))
    if options.root is None or not options.root.is_dir():
        raise UsageError(f"expected a folder of images, found {options.root or 'no dataset root'}", "--root FOLDER")
    classes = class_list_of(options)
    place, file = ImageFiles(photos_of(options.root)), split_of(options.root, options.split)
    split = parse_split(file, frozenset(place.ids()), place.id_of) if file else None
    ids = sorted(place.ids()) if split is None else split.ids
    masks = options.root / "masks"
    if not ids:
        raise UsageError(f"{place.folder}: expected images, found none", "--root FOLDER")
    return Dataset(
        kind="folder",
        root=options.root,
        split=file.stem if file else options.split,
        classes=classes,
        samples=tuple(Sample(check_image_id(key, str(place.folder)), place(key), (), options.orient) for key in ids),
        mask_folder=masks if masks.is_dir() else None,
        understood=split.understood if split else (),
    )


def without_labels(dataset: Dataset) -> Dataset:
    """Return the dataset with its labels removed."""
    return replace(dataset, samples=tuple(replace(sample, labels=()) for sample in dataset.samples))


def lacks_labels(options: DatasetOptions) -> bool:
    """Return whether the images are a folder with a class list and without a label file; other layouts contain labels."""
    if options.kind != "folder" or options.root is None or options.classes is None:
        return False
    return options.labels is None and not label_files_in(options.root)


def class_list_of(options: DatasetOptions) -> ClassList:
    """Return the class list that options name, or that of their layout, without reading any image or label.

    Raises:
        UsageError: There is neither.
    """
    classes = load_class_list(options.classes) if options.classes else kind_of(options).class_list
    if classes is None:
        raise UsageError("expected the names to tag images with, found no class list", "--classes FILE, .toml or .yaml")
    return classes
