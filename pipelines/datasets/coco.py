"""COCO 2014 and 2017."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.classes import COCO14, ClassList, load_class_list
from pipelines.datasets.label_files import read_label_file, select_labels
from pipelines.datasets.splits import check_image_id, read_regular, read_split, split_file
from pipelines.errors import SsrError, UsageError
from pipelines.options.sources import DatasetOptions

FOLDERS = ("train2014", "val2014", "train2017", "val2017")


@dataclass(frozen=True)
class CocoImage:
    """What an instances JSON says of one image: its file name and the class indices present."""

    file_name: str
    labels: tuple[int, ...]


class _Category(TypedDict):
    id: int
    name: str


class _Image(TypedDict):
    id: int
    file_name: str


class _Annotation(TypedDict):
    image_id: int
    category_id: int


class _Instances(TypedDict):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


def load_coco(options: DatasetOptions) -> Dataset:
    """List a COCO split.

    Images are in order of their id, or of the split file. The instances JSON is not read where ``labels`` and a split file say
    all; with ``labels`` and without the JSON, the label file is the split.
    """
    root, folders = _folders(options)
    classes = load_class_list(options.classes) if options.classes else COCO14
    listed = split_file(options.split)
    ids = read_split(listed) if listed else None
    given = read_label_file(options.labels, classes) if options.labels else None
    paths: dict[str, Path] = {}
    labels: dict[str, tuple[int, ...]] = {}
    for folder in folders if given is None or ids is None else ():
        source = root / "annotations" / f"instances_{folder}.json"
        if (listed or given is not None) and not source.is_file():
            continue
        for image_id, image in read_instances(source, classes).items():
            paths.setdefault(image_id, root / folder / image.file_name)
            labels.setdefault(image_id, image.labels)
        if ids is not None and labels.keys() >= set(ids):
            break  # the next JSON is half a gigabyte
    if ids is None:
        ids = tuple(labels or given or ())
    if given is not None and options.labels is not None:
        labels = select_labels(given, ids, options.labels)
    else:
        labels = select_labels(labels, ids, root / "annotations" / "instances_*.json")
    samples = tuple(
        Sample(image_id, paths.get(image_id) or _guess(root, folders, image_id), labels[image_id]) for image_id in ids
    )
    used = dict.fromkeys(sample.image_path.parent.name for sample in samples)
    masks = [root / "SegmentationClass" / name for name in used if (root / "SegmentationClass" / name).is_dir()]
    return Dataset(
        kind="coco",
        root=root,
        split=listed.stem if listed else folders[0],
        classes=classes,
        samples=samples,
        mask_folder=masks[0] if masks else None,
        mask_fallback=masks[1] if len(masks) > 1 else None,
    )


def read_instances(path: Path, classes: ClassList) -> dict[str, CocoImage]:
    """Images of an instances JSON with their labels, crowds included, ascending by image id.

    Categories are matched by name, aliases included: a JSON with fewer categories keeps the list's class indices. For COCO's
    own files this equals contiguous indices by ascending category id.

    Args:
        path: ``instances_*.json``.
        classes: Class list that category names are looked up in.

    Raises:
        SsrError: The file cannot be read or an entry is not as expected.
        UsageError: A category is not in the list, or a file name is unsafe.
    """
    content = _read_json(path)
    where = f"{path}: categories"
    try:
        index = {item["id"]: classes.indices([item["name"]], where)[0] for item in content["categories"]}
        where = f"{path}: images"
        names = {item["id"]: item["file_name"] for item in content["images"]}
        if len(names) != len(content["images"]):
            raise SsrError(f"{where}: an id stands twice")
        present: dict[int, set[int]] = {image: set() for image in names}
        where = f"{path}: annotations"
        for number, item in enumerate(content["annotations"]):
            where = f"{path}: annotations[{number}]"
            present[item["image_id"]].add(index[item["category_id"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise SsrError(
            f"{where}: expected COCO instances, found {type(error).__name__} {error!s:.60}", "--labels FILE"
        ) from None
    images: dict[str, CocoImage] = {}
    for key, name in names.items():
        if not isinstance(name, str):
            raise SsrError(f"{path}: images: expected a file_name, found {name!r:.60}")
        stem, _, suffix = name.rpartition(".")
        image_id = check_image_id(stem or name, f"{path}: image {key!r:.60}")
        check_image_id(suffix or image_id, f"{path}: image {key!r:.60}: what follows the last dot of {name!r:.60}")
        if image_id in images:
            raise SsrError(f"{path}: image {key!r:.60}: file name {name!r} stands twice")
        images[image_id] = CocoImage(name, tuple(sorted(present[key])))
    if not images:
        raise SsrError(f"{path}: expected at least one image, found none")
    return dict(sorted(images.items()))


def labels_from_coco(path: Path, classes: ClassList) -> dict[str, tuple[int, ...]]:
    """Labels of every image of an instances JSON; see `read_instances`."""
    return {image_id: image.labels for image_id, image in read_instances(path, classes).items()}


def _read_json(path: Path) -> _Instances:
    def slim(pairs: list[tuple[str, object]]) -> dict[str, object]:
        item = dict(pairs)
        if len(item) != len(pairs):
            raise ValueError("a key stands twice in one object")
        item.pop("segmentation", None)  # polygons are nine tenths of the memory
        return item

    try:
        content = json.loads(read_regular(path).decode("utf-8-sig"), object_pairs_hook=slim)
    except OSError as error:
        raise SsrError(f"{path}: cannot read the annotations: {error.strerror}", "--labels FILE for a label file") from None
    except (ValueError, RecursionError) as error:
        raise SsrError(f"{path}: broken JSON: {error}") from None
    if not isinstance(content, dict):
        raise SsrError(f"{path}: expected COCO instances, found a {type(content).__name__}")
    return cast("_Instances", content)


def _folders(options: DatasetOptions) -> tuple[Path, tuple[str, ...]]:
    root = options.root
    expected = f"expected COCO's folder with one of {', '.join(FOLDERS)}"
    if root is None:
        raise UsageError(f"{expected}, found no dataset root", "--root FOLDER")
    there = tuple(name for name in FOLDERS if (root / name).is_dir())
    if not there:
        raise UsageError(f"{expected}, found none in {root}", "--root FOLDER")
    if split_file(options.split):
        return root, there
    if options.split not in {"train", "val", *FOLDERS}:
        raise UsageError(
            f"expected split train, val, one of {', '.join(FOLDERS)} or a .txt file, found {options.split!r}", "--split"
        )
    for name in there:
        if name in {options.split, f"{options.split}2014", f"{options.split}2017"}:
            return root, (name,)
    raise UsageError(f"{root}: expected images of split {options.split!r}, found {', '.join(there)}", "--split")


def _guess(root: Path, folders: tuple[str, ...], image_id: str) -> Path:
    places = [root / folder / f"{image_id}.jpg" for folder in folders]
    return next((place for place in places if place.is_file()), places[0])
