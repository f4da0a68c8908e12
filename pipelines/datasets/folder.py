"""The layout of a folder of images, with or without a label file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.class_names import refuse_odd_names
from pipelines.datasets.classes import MAX_CLASSES, VOC12, ClassList, load_class_list
from pipelines.datasets.image_files import ImageFiles, listed, twice, unread, unread_line
from pipelines.datasets.label_files import holds_tags, label_names, read_label_file, select_labels, understood
from pipelines.datasets.label_stream import LabelStream
from pipelines.datasets.names import IMAGE_SUFFIXES, check_image_id
from pipelines.datasets.splits import parse_split, split_file
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions

_SUFFIXES = (".csv", ".json", ".jsonl")

MASKS = "masks"
"""Folder of ground truth beside the images."""


def may_have_masks(kind: str, root: Path | None) -> bool:
    """Whether a score can be asked of a dataset: a folder of images needs ground truth beside them; other layouts have it."""
    return kind != "folder" or root is None or (root / MASKS).is_dir()


def load_folder(options: DatasetOptions) -> Dataset:
    """List the images of a folder: ``images/`` or the folder itself, ``labels.csv | .json | .jsonl``, and ``masks/``, if any.

    Without a class list, the classes are the label file's names, sorted: keep one label file for all splits, or give a class
    list, so that indices agree. Split ``train`` is every image with labels unless ``train.txt`` lists others.
    """
    if options.root is None or not options.root.is_dir():
        raise UsageError(f"expected a folder of images, found {options.root or 'no dataset root'}", "--root FOLDER")
    root = options.root
    label_file = options.labels or label_file_of(root)
    classes = load_class_list(options.classes) if options.classes else _classes_of(label_file)
    file = split_of(root, options.split)
    place = ImageFiles(photos_of(root))
    words, passed = understood(label_file), tuple[str, ...]()
    samples: Sequence[Sample]
    if file is None:
        samples = stream = LabelStream(label_file, classes, place, options.orient, place.id_of)
        if unlabelled := stream.lacks(place.ids()):
            passed = (f"{unlabelled} images in {place.folder} have no row in {label_file.name} and are left out",)
    else:
        labels = read_label_file(label_file, classes, place.id_of)
        split = parse_split(file, labels, place.id_of)
        words = (*words, *split.understood)
        samples = tuple(
            Sample(key, place(key), present, options.orient)
            for key, present in select_labels(labels, split.ids, label_file, options.absent_is_empty).items()
        )
    masks = root / MASKS
    return Dataset(
        kind="folder",
        root=root,
        split=file.stem if file else options.split,
        classes=classes,
        samples=samples,
        mask_folder=masks if masks.is_dir() else None,
        understood=words,
        passed_over=passed,
        tagged=holds_tags(label_file),
    )


def load_photos(folder: Path, names: tuple[str, ...], orient: bool = False) -> Dataset:
    """List the images of a folder without its subfolders, and without labels.

    Args:
        folder: Folder of the images. Hidden files and files without the suffix of an image are passed over.
        names: Class names of the dataset.
        orient: Whether images are turned as their EXIF says.

    Returns:
        A dataset of kind ``folder`` without labels and ground truth; its split has the folder's name.

    Raises:
        UsageError: There is no folder, no image in it, two images of one name, or a name that is not safe for an output.
    """
    if not folder.is_dir():
        raise UsageError(f"expected a folder of images, found {folder}", "--images FOLDER")
    images = _images(folder)
    other = unread(folder)
    if not images:
        found = f"{unread_line(other)}" if other else "none; subfolders are not searched"
        raise UsageError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), found {found}")
    return Dataset(
        kind="folder",
        root=folder,
        split=folder.resolve().name,
        classes=ClassList(names, names, VOC12.background),
        samples=tuple(Sample(check_image_id(key, str(folder)), path, (), orient) for key, path in images.items()),
        mask_folder=None,
        passed_over=(f"{folder}: {unread_line(other)}",) if other else (),
    )


def _classes_of(label_file: Path) -> ClassList:
    names = label_names(label_file)
    if len(names) <= MAX_CLASSES:
        refuse_odd_names(names, label_file)
    try:
        return ClassList(names, names, VOC12.background)
    except UsageError as error:
        raise UsageError(f"{label_file}: {error.message}", "--classes FILE") from None


def label_file_of(root: Path) -> Path:
    """Return the label file in a folder of images.

    Raises:
        UsageError: There is none, or more than one.
    """
    there = label_files_in(root)
    if len(there) == 1:
        return there[0]
    found = ", ".join(path.name for path in there) or "none"
    deeper = next((path.parent for path in sorted(root.glob("*/labels.*")) if not there and path.suffix in _SUFFIXES), None)
    hint = f"--root {shlex.quote(str(deeper))}, or --labels FILE" if deeper else "--labels FILE"
    raise UsageError(f"{root}: expected one of labels.csv, labels.json, labels.jsonl, found {found}", hint)


def label_files_in(root: Path) -> list[Path]:
    """Return the files in a folder of images that have the name of a label file."""
    return [root / f"labels{suffix}" for suffix in _SUFFIXES if (root / f"labels{suffix}").is_file()]


def photos_of(root: Path) -> Path:
    """Return the folder of the images: ``images/`` if it exists, else the root itself."""
    return root / "images" if (root / "images").is_dir() else root


def split_of(root: Path, split: str) -> Path | None:
    """Return the file of a split; None for split ``train`` without a file, which is every image."""
    path = split_file(split) or root / f"{split}.txt"
    if path.is_file() or split != "train":
        return path
    return None


def _images(folder: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in sorted(map(Path, listed(folder))):
        if path.stem in images:
            raise twice(folder, images[path.stem].name, path.name)
        images[path.stem] = folder / path
    return images
