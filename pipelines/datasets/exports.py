"""Labels from the files of classification and detection datasets: one folder per class, and YOLO."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.datasets.class_names import clean_class_name
from pipelines.datasets.image_files import nested, unread_in, unread_line
from pipelines.datasets.names import IMAGE_FOLDERS, image_id_of
from pipelines.datasets.splits import read_regular
from pipelines.errors import UsageError

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_NAMES = ("classes.txt", "obj.names", "class.names", "labels.txt")
_NO_LABELS = {
    *_NAMES,
    "train.txt",
    "val.txt",
    "valid.txt",
    "test.txt",
    "readme.txt",
    "readme.roboflow.txt",
    "readme.dataset.txt",
}
_BIGGEST_CLASS = 100_000


@dataclass(frozen=True)
class NamedLabels:
    """Class names of images, without a class list.

    Attributes:
        images: Class names by image id; may be empty.
        names: All class names, in the order of the source.
        understood: Notes on what was found and what was passed over.
    """

    images: dict[str, tuple[str, ...]]
    names: tuple[str, ...]
    understood: tuple[str, ...]


def labels_from_folders(root: Path) -> NamedLabels:
    """Read the classes of images that are in one folder per class, ``CLASS/x.jpg`` or ``train/CLASS/x.jpg``.

    Args:
        root: Folder of these folders. Images beside them have no class and are passed over.

    Raises:
        UsageError: There is no image in a subfolder.
    """
    photos = {image_id: path.relative_to(root) for image_id, path in nested(root).items()}
    inside = {image_id: path for image_id, path in photos.items() if len(path.parts) > 1}
    if not inside:
        raise UsageError(f"{root}: expected images in one folder a class, found none", "--from folders reads CLASS/x.jpg")
    outer, skip = SPLITS | IMAGE_FOLDERS, 0
    while all(len(path.parts) > skip + 2 and path.parts[skip].lower() in outer for path in inside.values()):
        skip += 1
    images: dict[str, tuple[str, ...]] = {image_id: (clean_class_name(path.parts[skip]),) for image_id, path in inside.items()}
    names = tuple(sorted({name for found in images.values() for name in found}))
    outside, other = len(photos) - len(inside), unread_in(root)
    words = [f"{outside} images outside the folders of classes are passed over"] if outside else []
    words += [unread_line(other)] if other else []
    return NamedLabels(images, names, tuple(words))


def labels_from_yolo(root: Path, names: Iterable[str] | None = None) -> NamedLabels:
    """Read YOLO's label files, ``labels/x.txt`` with a class number at the beginning of each line.

    Args:
        root: The dataset, or its folder of label files. An image without a label file has no class, as YOLO defines it.
        names: Class names by number; None: those of ``data.yaml``, ``classes.txt`` or ``obj.names``.

    Raises:
        UsageError: There are no label files or no names, or a line does not begin with the number of a class.
    """
    source, known = _yolo_names(root)
    if known is None:
        if names is None:
            raise UsageError(
                f"{root}: expected class names in data.yaml, classes.txt or obj.names, found none", "--classes FILE"
            )
        known = tuple(names)
    files = sorted(
        path for path in root.rglob("*.txt") if path.name.lower() not in _NO_LABELS and not path.name.startswith(".")
    )
    images: dict[str, tuple[str, ...]] = {}
    for path in files:
        image_id = image_id_of(path.stem, str(path))
        if image_id in images:
            hint = "convert each split by itself, e.g. labels/train; or rename one image"
            raise UsageError(f"{root}: expected one label file an image, found two for {image_id!r}", hint)
        images[image_id] = _yolo_file(path, known)
    photos = _yolo_photos(root)
    empty = [image_id for image_id in photos if image_id not in images]
    images |= dict.fromkeys(empty, ())
    if not images:
        raise UsageError(f"{root}: expected YOLO's label files labels/*.txt, found none", "--from yolo reads the set's folder")
    words = [f"class names are those of {source.name}"] if source else ["class numbers are places in the class list"]
    words += [f"{len(empty)} images without a label file have no class"] if empty else []
    return NamedLabels(dict(sorted(images.items())), known, tuple(words))


def _yolo_names(root: Path) -> tuple[Path | None, tuple[str, ...] | None]:
    for folder in (root, root / "labels", root.parent, root.parent.parent):
        for path in sorted(folder.glob("*.y*ml"), key=lambda path: (not path.name.startswith("data"), path.name)):
            content = _yaml(path)
            found = content.get("names") if isinstance(content, dict) else None
            if isinstance(found, dict):
                found = [found[key] for key in sorted(found)] if all(isinstance(key, int) for key in found) else None
            if isinstance(found, list):
                odd = next((name for name in found if isinstance(name, bool | None)), "")
                if odd != "":
                    raise UsageError(f"{path}: expected class names, found {odd}", "YAML needs quotes around yes, no, on, off")
                return path, tuple(clean_class_name(str(name)) for name in found)
        for name in _NAMES[:3]:
            if (folder / name).is_file():
                lines = _text(folder / name).splitlines()
                return folder / name, tuple(clean_class_name(line) for line in lines if line.strip())
    return None, None


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: not valid: {' '.join(str(error).split()):.200}") from None


def _text(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected UTF-8, found other bytes") from None


def _yolo_file(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        word = line.split()[0]
        index = int(float(word)) if word.replace(".0", "").isdigit() and len(word) < 12 else _BIGGEST_CLASS
        if index >= len(names):
            expected = f"a class number from 0 to {len(names) - 1}"
            raise UsageError(
                f"{path}:{number}: expected {expected}, found {word!r:.40}", "names in data.yaml, or --classes FILE"
            )
        found[names[index]] = None
    return tuple(found)


def _yolo_photos(root: Path) -> list[str]:
    base = root.parent if root.name == "labels" else root
    if base.name in SPLITS and base.parent.name == "labels":
        base = base.parent.parent / "images" / base.name
    return sorted(nested(base)) if base.is_dir() and (base.name.lower() in IMAGE_FOLDERS or any(base.iterdir())) else []
