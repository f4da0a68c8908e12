"""The layouts of COCO 2014 and 2017, and exports of annotation tools in COCO's form."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.classes import COCO14, ClassList, load_class_list
from pipelines.datasets.coco_json import Instances, classes_of_coco, read_instances
from pipelines.datasets.image_files import ImageFiles, listed, nested
from pipelines.datasets.label_files import holds_tags, read_label_file, select_labels, understood
from pipelines.datasets.splits import parse_split, split_file
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions

FOLDERS = ("train2014", "val2014", "train2017", "val2017")
SPLIT_NAMES = ("train", "val", "valid", "test")
_ALIASES = {"val": ("val", "valid", "validation"), "valid": ("valid", "val", "validation")}
"""Other names of a split in exports."""


@dataclass(frozen=True)
class _Source:
    """The annotation file and the folder of images of each split."""

    name: str
    annotations: Path
    photos: Path


def load_coco(options: DatasetOptions) -> Dataset:
    """List the images and labels of a COCO split.

    Images are in order of their ids, or of the split file. With ``labels`` and a split file, the instances JSON is not read;
    with ``labels`` and without the JSON, the label file is the split.
    """
    if options.root is None:
        raise UsageError(f"{_EXPECTED}, found no dataset root", "--root FOLDER")
    listed = split_file(options.split)
    sources = _sources(options.root, options.split, listed is not None)
    classes, words = _classes(options, sources)
    parsed = parse_split(listed) if listed else None
    ids = parsed.ids if parsed else None
    words = (*words, *(parsed.understood if parsed else ()))
    passed: tuple[str, ...] = ()
    given = read_label_file(options.labels, classes) if options.labels else None
    places = _Places(sources)
    labels: dict[str, tuple[int, ...]] = {}
    for source in sources if given is None or ids is None else ():
        if (listed or given is not None) and not source.annotations.is_file():
            continue
        try:
            found = read_instances(source.annotations, classes)
        except UsageError:  # another dataset in folders with COCO's names
            own = _own_classes(source, options)
            if own is None or labels:
                raise
            found, classes = read_instances(source.annotations, own), own
            words = (*words, _found_in(source, own))
        places.add(source, found)
        passed = (*passed, *found.passed_over)
        for image_id, image in found.images.items():
            labels.setdefault(image_id, image.labels)
        if ids is not None and labels.keys() >= set(ids):
            break  # avoids reading the next JSON, of half a gigabyte
    if ids is None:
        ids = tuple(labels or given or ())
    if given is not None and options.labels is not None:
        labels = select_labels(given, ids, options.labels, options.absent_is_empty)
        words = (*words, *understood(options.labels))
    else:
        several = sources[0].annotations.parent / "instances_*.json"
        labels = select_labels(labels, ids, several if listed else sources[0].annotations, options.absent_is_empty)
    samples = tuple(Sample(image_id, places(image_id), labels[image_id], options.orient) for image_id in ids)
    used = dict.fromkeys(sample.image_path.parent.name for sample in samples)
    folder = options.root / "SegmentationClass"
    masks = [folder / name for name in used if (folder / name).is_dir()]
    return Dataset(
        kind="coco",
        root=options.root,
        split=listed.stem if listed else sources[0].name,
        classes=classes,
        samples=samples,
        mask_folder=masks[0] if masks else None,
        mask_fallback=masks[1] if len(masks) > 1 else None,
        understood=words,
        passed_over=passed,
        tagged=holds_tags(options.labels),
    )


def coco_splits(root: Path) -> tuple[str, ...] | None:
    """Return the names of the splits of a COCO folder or of an export in COCO's form; None for other folders.

    A folder with ``labels.json`` is an export only if ``data/`` is beside it (FiftyOne); otherwise it is a label file.
    """
    if folders := _photo_folders(root):
        return folders
    exports = {name: path for name, path in _annotation_files(root).items() if _is_export(path)}
    return tuple(exports) or None


def _is_export(path: Path) -> bool:
    return path.name != "labels.json" or (path.parent / "data").is_dir()


class _Places:
    """Maps an image id to its file, over the folders of all sources; the file that an annotation names has priority."""

    def __init__(self, sources: tuple[_Source, ...]) -> None:
        self._files = {source: ImageFiles(source.photos, preferred=".jpg") for source in sources}
        self._source: dict[str, _Source] = {}
        self._nested: dict[str, Path] = {}

    def add(self, source: _Source, found: Instances) -> None:
        """Add the files of the images of an annotation file."""
        for image_id, image in found.images.items():
            self._source.setdefault(image_id, source)
            if "/" in image.file_name or "\\" in image.file_name:
                name = image.file_name.replace("\\", "/").lstrip("/")
                for path in (source.photos / name, source.annotations.parent.parent / name):
                    if path.is_relative_to(source.photos) and path.is_file():
                        self._nested.setdefault(image_id, path)

    def __call__(self, image_id: str) -> Path:
        if image_id in self._nested:
            return self._nested[image_id]
        if image_id in self._source:
            return self._files[self._source[image_id]](image_id)
        places = [files(image_id) for files in self._files.values()]
        return next((place for place in places if place.is_file()), places[0])


def _classes(options: DatasetOptions, sources: tuple[_Source, ...]) -> tuple[ClassList, tuple[str, ...]]:
    """Return the class list, and notes on how it was found: an export has classes of its own unless an option names a list."""
    if options.classes:
        return load_class_list(options.classes), ()
    first = sources[0].annotations
    if sources[0].name in FOLDERS or options.labels or not first.is_file():
        return COCO14, ()
    own = classes_of_coco(first)
    known = {*COCO14.names, *dict(COCO14.aliases)}
    if known.issuperset(own.names):
        return COCO14, ()
    return own, (_found_in(sources[0], own),)


def _own_classes(source: _Source, options: DatasetOptions) -> ClassList | None:
    """Return the categories of an annotation file that has none of COCO's; None if an option gives the classes."""
    if options.classes or options.labels:
        return None
    own = classes_of_coco(source.annotations)
    return own if {*COCO14.names, *dict(COCO14.aliases)}.isdisjoint(own.names) else None


def _found_in(source: _Source, classes: ClassList) -> str:
    names = ", ".join(classes.names[:6])
    return f"classes are the {len(classes.names)} categories of {source.annotations.name}: {names}; --classes FILE for others"


_EXPECTED = f"expected COCO's folder with one of {', '.join(FOLDERS)}, or an export with its annotations as JSON"


def _sources(root: Path, split: str, from_file: bool) -> tuple[_Source, ...]:
    """Return annotation files and their image folders: those of the split, or all of them for a split file."""
    there = {name: root / name for name in FOLDERS if (root / name).is_dir()}
    there |= {name: root / "images" / name for name in FOLDERS if (root / "images" / name).is_dir() and name not in there}
    if not there:
        return _exported(root, split, from_file)
    sources = {name: _Source(name, root / "annotations" / f"instances_{name}.json", place) for name, place in there.items()}
    if from_file:
        return tuple(sources.values())
    if split not in {"train", "val", *FOLDERS}:
        raise UsageError(f"expected split train, val, one of {', '.join(FOLDERS)} or a .txt file, found {split!r}", "--split")
    for name, source in sources.items():
        if name in {split, f"{split}2014", f"{split}2017"}:
            return (source,)
    raise UsageError(f"{root}: expected images of split {split!r}, found {', '.join(there)}", "--split")


def _exported(root: Path, split: str, from_file: bool) -> tuple[_Source, ...]:
    """Return the source of an export that has the split's name, or the only source."""
    found = _annotation_files(root)
    found = {name: path for name, path in found.items() if _has_photos(_photos_of(root, path, name))}
    if from_file and found:
        return tuple(_Source(name, path, _photos_of(root, path, name)) for name, path in found.items())
    for name in (*_ALIASES.get(split, (split,)), f"{split}2014", f"{split}2017"):
        if name in found:
            return (_Source(name, found[name], _photos_of(root, found[name], name)),)
    if len(found) == 1 and split == "train":
        name, path = next(iter(found.items()))
        return (_Source(name, path, _photos_of(root, path, name)),)
    if found:
        names = ", ".join(f"{name} ({path.relative_to(root)})" for name, path in found.items())
        raise UsageError(f"{root}: expected annotations of split {split!r}, found {names}", "--split")
    inside = sorted(root.iterdir()) if root.is_dir() else []
    listing = f": it holds {', '.join(path.name for path in inside[:8])}" if inside else ""
    deeper = next((path for path in inside if path.is_dir() and (_annotation_files(path) or _photo_folders(path))), None)
    archive = next((path.name for path in inside if path.suffix.lower() in {".zip", ".tar", ".gz", ".tgz", ".7z"}), None)
    hint = f"--root {shlex.quote(str(deeper))}" if deeper else f"unpack {archive} first" if archive else "--root FOLDER"
    raise UsageError(f"{_EXPECTED}, found none in {root}{listing}", hint)


def _photo_folders(root: Path) -> tuple[str, ...]:
    """Return the folders of `FOLDERS` that exist in the root or in its ``images/``."""
    return tuple(name for name in FOLDERS if (root / name).is_dir() or (root / "images" / name).is_dir())


def _has_photos(folder: Path) -> bool:
    return any(True for _ in listed(folder)) or bool(nested(folder))


def _annotation_files(root: Path) -> Mapping[str, Path]:
    """Return the annotation files of an export by the name of their split."""
    found: dict[str, Path] = {}
    for path in sorted(root.glob("annotations/*.json")) or sorted(root.glob("instances_*.json")):
        found.setdefault(path.stem.removeprefix("instances_"), path)
    for path in sorted(root.glob("*/_annotations.coco.json")) + sorted(root.glob("*/labels.json")):  # Roboflow, FiftyOne
        if path.parent.name != "annotations":
            found.setdefault(path.parent.name, path)
    for name in SPLIT_NAMES:
        if (root / f"{name}.json").is_file():
            found.setdefault(name, root / f"{name}.json")
    for name in ("_annotations.coco.json", "labels.json", "result.json", "result_coco.json", "annotations.json"):
        if (root / name).is_file():  # the last files are Label Studio's
            found.setdefault("all", root / name)
    return found


def _photos_of(root: Path, annotations: Path, name: str) -> Path:
    """Return the folder of an annotation file's images: the likeliest existing one."""
    beside = annotations.parent
    places = [
        root / "images" / name,
        root / name / "images",
        root / name / "data",
        root / name,
        beside / "data",
        beside / "images",
    ]
    places += [root / "images", root / "data", beside, root]
    return next((place for place in places if place.is_dir() and place.name != "annotations"), root)
