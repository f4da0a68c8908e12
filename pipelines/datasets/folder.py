"""A folder of images, with a label file or without."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.classes import VOC12, ClassList, load_class_list
from pipelines.datasets.label_files import IMAGE_SUFFIXES, label_names, read_label_file, select_labels
from pipelines.datasets.label_stream import LabelStream
from pipelines.datasets.splits import check_image_id, read_split, split_file
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions


def load_folder(options: DatasetOptions) -> Dataset:
    """List a folder dataset: ``images/`` or the folder itself, ``labels.csv | .json | .jsonl``, and optionally ``masks/``.

    Without a class list the classes are the label file's names, sorted: keep one label file for all splits, or give a class
    list, so that indices agree. Split ``train`` is every image with labels unless ``train.txt`` says otherwise.
    """
    if options.root is None or not options.root.is_dir():
        raise UsageError(f"expected a folder of images, found {options.root or 'no dataset root'}", "--root FOLDER")
    root = options.root
    label_file = options.labels or _label_file(root)
    classes = load_class_list(options.classes) if options.classes else _classes_of(label_file)
    listed = _split(root, options.split)
    place = _Places(root / "images" if (root / "images").is_dir() else root)
    samples: Sequence[Sample]
    if listed is None:
        samples = LabelStream(label_file, classes, place)
    else:
        labels = select_labels(read_label_file(label_file, classes), read_split(listed), label_file)
        samples = tuple(Sample(key, place(key), present) for key, present in labels.items())
    masks = root / "masks"
    return Dataset(
        kind="folder",
        root=root,
        split=listed.stem if listed else options.split,
        classes=classes,
        samples=samples,
        mask_folder=masks if masks.is_dir() else None,
    )


def load_photos(folder: Path, names: tuple[str, ...]) -> Dataset:
    """List the photos of any folder, not of its subfolders; nothing is known of what they show.

    Args:
        folder: Hidden files and files that are no images by their suffix are passed over.
        names: Class names of whoever looks at them.

    Returns:
        A dataset of kind ``folder`` without labels and ground truth; its split has the folder's name.

    Raises:
        UsageError: No folder, no photo in it, two photos of one name, or a name that is not safe for an output.
    """
    if not folder.is_dir():
        raise UsageError(f"expected a folder of photos, found {folder}", "--images FOLDER")
    images = _images(folder)
    if not images:
        raise UsageError(f"{folder}: expected photos ({', '.join(IMAGE_SUFFIXES)}), found none; subfolders are not searched")
    return Dataset(
        kind="folder",
        root=folder,
        split=folder.resolve().name,
        classes=ClassList(names, names, VOC12.background),
        samples=tuple(Sample(check_image_id(key, str(folder)), path, ()) for key, path in images.items()),
        mask_folder=None,
    )


def _classes_of(label_file: Path) -> ClassList:
    names = label_names(label_file)
    try:
        return ClassList(names, names, VOC12.background)
    except UsageError as error:
        raise UsageError(f"{label_file}: {error.message}", "--classes FILE") from None


def _label_file(root: Path) -> Path:
    there = [root / f"labels.{suffix}" for suffix in ("csv", "json", "jsonl") if (root / f"labels.{suffix}").is_file()]
    if len(there) == 1:
        return there[0]
    found = ", ".join(path.name for path in there) or "none"
    raise UsageError(f"{root}: expected one of labels.csv, labels.json, labels.jsonl, found {found}", "--labels FILE")


def _split(root: Path, split: str) -> Path | None:
    path = split_file(split) or root / f"{split}.txt"
    if path.is_file() or split != "train":
        return path
    return None


def _images(folder: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in sorted(map(Path, _listed(folder))):
        if path.stem in images:
            raise _twice(folder, images[path.stem].name, path.name)
        images[path.stem] = folder / path
    return images


def _twice(folder: Path, one: str, other: str) -> UsageError:
    first, second = (name if name.isprintable() else repr(name) for name in sorted((one, other)))
    return UsageError(f"{folder}: expected one image of each name, found {first} and {second}")


def _listed(folder: Path) -> Iterator[str]:
    """Names of the image files in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".") and entry.is_file():
                yield name


class _Places:
    """Image id -> file. Only names that do not end as most in the folder do are held.

    Args:
        folder: The photos.

    Raises:
        UsageError: Two photos have one name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        endings = Counter(os.path.splitext(name)[1] for name in _listed(folder))
        self._ending = max(endings, key=lambda ending: (endings[ending], ending == ".jpg", ending), default=".jpg")
        self._others: dict[str, str] = {}
        for name in _listed(folder) if len(endings) > 1 else ():
            stem, ending = os.path.splitext(name)
            if ending != self._ending:
                usual = stem + self._ending
                other = self._others.get(stem) or (usual if (folder / usual).is_file() else None)
                if other is not None:
                    raise _twice(folder, other, name)
                self._others[stem] = name

    def __call__(self, image_id: str) -> Path:
        return self._folder / (self._others.get(image_id) or image_id + self._ending)
