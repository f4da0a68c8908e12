"""The photos of a dataset, whatever is known of what they show."""

from __future__ import annotations

from dataclasses import replace

from pipelines.datasets import Dataset, Sample, load_class_list, load_dataset
from pipelines.datasets.folder import photos_of, split_of
from pipelines.datasets.image_files import ImageFiles
from pipelines.datasets.names import check_image_id
from pipelines.datasets.splits import parse_split
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions


def load_unlabelled(options: DatasetOptions) -> Dataset:
    """List the photos of a split as photos of which no class is known; no ground truth is known either.

    A folder needs no label file then: without a split file, all its photos are the split. Of other layouts the loader reads
    what it always does, and the labels are left out.

    Raises:
        UsageError: No photos, or no class list: neither in the options nor of the layout.
    """
    if options.kind != "folder":
        dataset = load_dataset(options.model_copy(update={"labels": None}))
        samples = tuple(replace(sample, labels=()) for sample in dataset.samples)
        return replace(dataset, samples=samples, mask_folder=None, mask_fallback=None)
    if options.root is None or not options.root.is_dir():
        raise UsageError(f"expected a folder of images, found {options.root or 'no dataset root'}", "--root FOLDER")
    if options.classes is None:
        raise UsageError("expected the names to tag photos with, found no class list", "--classes FILE, .toml or .yaml")
    place, file = ImageFiles(photos_of(options.root)), split_of(options.root, options.split)
    split = parse_split(file, frozenset(place.ids()), place.id_of) if file else None
    ids = sorted(place.ids()) if split is None else split.ids
    if not ids:
        raise UsageError(f"{place.folder}: expected photos, found none", "--root FOLDER")
    return Dataset(
        kind="folder",
        root=options.root,
        split=file.stem if file else options.split,
        classes=load_class_list(options.classes),
        samples=tuple(Sample(check_image_id(key, str(place.folder)), place(key), (), options.orient) for key in ids),
        mask_folder=None,
        understood=split.understood if split else (),
    )
