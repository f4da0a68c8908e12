"""Reading of annotations in COCO's form, as COCO, Roboflow, CVAT, Label Studio and FiftyOne write them."""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.datasets.class_names import clean_class_name, refuse_odd_names
from pipelines.datasets.classes import VOC12, ClassList
from pipelines.datasets.names import IMAGE_SUFFIXES, check_image_id, image_id_of
from pipelines.datasets.splits import encoding_of, read_regular
from pipelines.errors import SsrError, UsageError


@dataclass(frozen=True)
class CocoImage:
    """One image of an instances JSON: its file name and the class indices present."""

    file_name: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Instances:
    """The content of an instances JSON.

    Attributes:
        images: Images by id, ascending.
        passed_over: Notes on entries that belong to none of these images and classes.
    """

    images: dict[str, CocoImage]
    passed_over: tuple[str, ...]


def read_instances(path: Path, classes: ClassList) -> Instances:
    """Read the images of an instances JSON and their labels, crowds included, ascending by image id.

    Categories are matched by name, aliases included, so that a JSON with fewer categories keeps the list's class indices. For
    COCO's own files this equals contiguous indices by ascending category id. A category that no annotation uses need not be a
    class, and annotations of images that are not listed are passed over.

    Args:
        path: ``instances_*.json``.
        classes: Class list in which category names are looked up.

    Raises:
        SsrError: The file cannot be read, or an entry is not as expected.
        UsageError: A category is not in the list, or a file name is unsafe.
    """
    content, where = _read_json(path), f"{path}: categories"
    try:
        names = {_key(item["id"]): item["name"] for item in content["categories"]}
        where = f"{path}: images"
        files = {_key(item["id"]): _inside(path, item["id"], item["file_name"]) for item in content["images"]}
        if len(files) != len(content["images"]):
            raise SsrError(f"{where}: an id occurs twice")
        present: dict[Any, set[Any]] = {image: set() for image in files}
        lost, annotations = 0, content["annotations"]
        where = f"{path}: annotations"
        for number, item in enumerate(annotations):
            where = f"{path}: annotations[{number}]"
            category, image = _key(item["category_id"]), _key(item["image_id"])
            if category not in names:
                raise SsrError(f"{where}: category_id {item['category_id']!r:.60} is not among the categories", "--labels FILE")
            if image in present:
                present[image].add(category)
            else:
                lost += 1
        where = f"{path}: annotations"
        if lost and lost == len(annotations):
            raise SsrError(f"{where}: expected COCO instances, found none of the images that are listed", "--labels FILE")
        used = set().union(*present.values())
        where = f"{path}: categories"
        index = {key: classes.indices([name], where)[0] for key, name in names.items() if key in used}
    except (KeyError, TypeError, AttributeError) as error:
        raise SsrError(
            f"{where}: expected COCO instances, found {type(error).__name__} {error!s:.60}", "--labels FILE"
        ) from None
    images = {
        image_id: CocoImage(files[key], tuple(sorted(index[category] for category in present[key])))
        for image_id, key in _image_ids(path, files).items()
    }
    if not images:
        raise SsrError(f"{path}: expected at least one image, found none")
    passed = [f"{lost} annotations of images that are not listed"] if lost else []
    known = {*classes.names, *dict(classes.aliases)}
    unused = [str(name) for key, name in names.items() if key not in used and name not in known]
    passed += [f"categories without an annotation: {', '.join(unused[:6])}"] if unused else []
    return Instances(dict(sorted(images.items())), tuple(f"{path.name}: passed over {words}" for words in passed))


def _key(number: Any) -> Any:
    """Return an id that is the same whether it was written as a number or as text."""
    return number if isinstance(number, int) or not isinstance(number, str) or not number.isdecimal() else int(number)


def _inside(path: Path, key: object, name: Any) -> Any:
    """Return a file name without ``..``; a path from the folder of the JSON to another folder of the dataset is resolved.

    Raises:
        UsageError: The path leads out of the dataset.
    """
    if not isinstance(name, str) or "://" in name or not name.lower().endswith(IMAGE_SUFFIXES):
        return name
    if ".." not in re.split(r"[/\\]", name):
        return name
    cleaned = posixpath.normpath(posixpath.join("annotations", name.strip().replace("\\", "/")))
    if cleaned.split("/")[0] in {"..", "", "."}:
        found = f"image {key!r:.60}: file_name {name!r:.100} leads out of the data set"
        hint = "write file names relative to the folder of images, such as train/x.jpg or x.jpg"
        raise UsageError(f"{path}: {found}", hint)
    return cleaned.removeprefix("annotations/")


def _image_ids(path: Path, files: dict[Any, Any]) -> dict[str, Any]:
    """Map image ids to ids of the JSON; an image is called ``FOLDER__NAME`` where its name alone occurs twice."""
    plain: dict[Any, str] = {}
    for key, name in files.items():
        where = f"{path}: image {key!r:.60}"
        if not isinstance(name, str):
            raise SsrError(f"{path}: images: expected a file_name, found {name!r:.60}")
        stem, _, suffix = name.rpartition(".")
        if f".{suffix.lower()}" in IMAGE_SUFFIXES or "://" in name or "?d=" in name:
            plain[key] = image_id_of(name, where)
        else:
            plain[key] = check_image_id(stem or name, where)
            check_image_id(suffix or plain[key], f"{where}: what follows the last dot of {name!r:.60}")
    counts = Counter(plain.values())
    images: dict[str, Any] = {}
    for key, image_id in plain.items():
        if counts[image_id] > 1:
            folders = files[key].replace("\\", "/").strip("/").split("/")[:-1]
            image_id = check_image_id("__".join([*folders, image_id]), f"{path}: image {key!r:.60}")
        if image_id in images:
            raise SsrError(f"{path}: image {key!r:.60}: file name {files[key]!r:.200} occurs twice")
        images[image_id] = key
    return images


def classes_of_coco(path: Path) -> ClassList:
    """Return the categories of an instances JSON as a class list, in order of their ids, with VOC's background words.

    A category that is only a parent of others, as Roboflow writes one, is no class unless it has annotations.

    Raises:
        SsrError: The file cannot be read, or an entry is not as expected.
        UsageError: The categories are no class names.
    """
    content = _read_json(path)
    try:
        categories = sorted(content["categories"], key=lambda item: item["id"])
        above = {item.get("supercategory") for item in categories}
        used = {_key(item["category_id"]) for item in content["annotations"]}
        listed = [item["name"] for item in categories if _key(item["id"]) in used or item["name"] not in above]
        names = list(dict.fromkeys(map(clean_class_name, listed)))  # Roboflow may repeat a class as its parent
    except (KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__} {error!s:.60}"
        raise SsrError(f"{path}: categories: expected COCO instances, found {found}", "--classes FILE") from None
    refuse_odd_names(names, path)
    try:
        return ClassList(tuple(names), tuple(names), VOC12.background)
    except UsageError as error:
        raise UsageError(f"{path}: categories: {error.message}", "--classes FILE") from None


def labels_from_coco(path: Path, classes: ClassList) -> dict[str, tuple[int, ...]]:
    """Return the labels of every image of an instances JSON; see `read_instances`."""
    return {image_id: image.labels for image_id, image in read_instances(path, classes).images.items()}


def _read_json(path: Path) -> dict[str, Any]:
    def slim(pairs: list[tuple[str, object]]) -> dict[str, object]:
        item = dict(pairs)
        if len(item) != len(pairs):
            raise ValueError("a key occurs twice in one object")
        item.pop("segmentation", None)  # polygons take nine tenths of the memory
        return item

    try:
        text = read_regular(path)
        if not text.strip():
            raise SsrError(f"{path}: expected COCO instances, found an empty file", "export the annotations again")
        content = json.loads(text.decode(encoding_of(text)), object_pairs_hook=slim)
    except OSError as error:
        raise SsrError(f"{path}: cannot read the annotations: {error.strerror}", "--labels FILE for a label file") from None
    except (ValueError, RecursionError) as error:
        raise SsrError(f"{path}: broken JSON: {error}") from None
    if not isinstance(content, dict):
        hint = "an object with images, annotations and categories; a list holds the detections of a model"
        raise SsrError(f"{path}: expected COCO instances, found a {type(content).__name__}", hint)
    return content
