"""Image files by image id, for every layout of datasets, and the reasons why one is missing."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pipelines.datasets.names import IMAGE_SUFFIXES, UNREAD_SUFFIXES, did_you_mean, image_id_of, name_key, without_suffix
from pipelines.errors import UsageError
from pipelines.stores.manifest import holds_outputs

NO_PHOTOS = {"masks", "segmentationclass", "segmentationclassaug", "segmentationobject", "annotations", "labels"}
"""Subfolders of a folder of images in which no images are searched; nor are they in what commands wrote."""


class ImageFiles:
    """Maps an image id to its file. Only names whose suffix is not the most frequent one are held in memory.

    If a folder has only subfolders, these are searched; an image in them has its name as id or, if another one has that name,
    ``SUBFOLDER__NAME``.

    Args:
        folder: Folder of the images, which may be missing.
        preferred: Suffix that is chosen if two files have one name; None makes that an error.

    Raises:
        UsageError: Two images have one name.

    Attributes:
        folder: The given folder.
    """

    def __init__(self, folder: Path, preferred: str | None = None) -> None:
        self.folder = folder
        self._others: dict[str, str] = {}
        self._by_path: dict[str, str] = {}
        endings = Counter(os.path.splitext(name)[1] for name in listed(folder))
        self._ending = max(endings, key=lambda ending: (endings[ending], ending == ".jpg", ending), default=preferred or ".jpg")
        self._count = sum(endings.values())
        if not endings:
            self._others = {image_id: str(path.relative_to(folder)) for image_id, path in nested(folder).items()}
            self._count = len(self._others)
            joined = {image_id: path for image_id, path in self._others.items() if image_id != _stem(path)}
            self._by_path = {without_suffix(Path(path).as_posix()): image_id for image_id, path in joined.items()}
        for name in listed(folder) if endings else ():
            self._hold(name, preferred)

    def _hold(self, name: str, preferred: str | None) -> None:
        stem, ending = os.path.splitext(name)
        usual = stem + self._ending
        if ending != self._ending:
            other = self._others.get(stem) or (usual if (self.folder / usual).is_file() else None)
            if other is not None and preferred is None:
                raise twice(self.folder, other, name)
            if other is None or ending == preferred:
                self._others[stem] = name
        if not stem.isascii():  # macOS decomposes accents, and the ids of lists have them composed
            composed = unicodedata.normalize("NFC", stem)
            if composed != stem and not (self.folder / (composed + self._ending)).is_file():
                self._others[stem] = name
                self._others.setdefault(composed, name)

    def __call__(self, image_id: str) -> Path:
        """Return the path of the image, which may be missing."""
        return self.folder / (self._others.get(image_id) or image_id + self._ending)

    def id_of(self, text: str, where: str) -> str:
        """Return the image id of a path in a list or a table; the path's folder decides between two images of one name.

        Raises:
            UsageError: As in `names.image_id_of`.
        """
        parts = without_suffix(text.strip().replace("\\", "/")).split("/") if self._by_path else []
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((self._by_path[end] for end in ends if end in self._by_path), None) or image_id_of(text, where)

    def __len__(self) -> int:
        return self._count

    def ids(self) -> Iterator[str]:
        """Yield the id of every image."""
        if self._count and not any(True for _ in listed(self.folder)):
            yield from self._others
        else:
            yield from (unicodedata.normalize("NFC", os.path.splitext(name)[0]) for name in listed(self.folder))


def _stem(path: str) -> str:
    return unicodedata.normalize("NFC", Path(path).stem)


def listed(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Iterator[str]:
    """Yield the names of the image files in a folder, without hidden ones; none if there is no folder."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".") and _is_file(entry):
                yield name


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def nested(folder: Path) -> dict[str, Path]:
    """Return the images in the subfolders of a folder by id: the name, or ``SUBFOLDER__NAME`` if two have one name.

    Raises:
        UsageError: Two images have one name in one folder.
    """
    found: dict[str, list[Path]] = {}
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not (name.startswith(".") or name.lower() in NO_PHOTOS or holds_outputs(Path(place) / name))
        )
        for name in sorted(listed(Path(place))):
            path = Path(place) / name
            found.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    photos: dict[str, Path] = {}
    for stem, paths in found.items():
        for path in paths:
            parts = path.relative_to(folder).with_suffix("").parts if len(paths) > 1 else (stem,)
            image_id = unicodedata.normalize("NFC", "__".join(parts))
            if image_id in photos:
                raise twice(path.parent, photos[image_id].name, path.name)
            photos[image_id] = path
    return photos


def twice(folder: Path, one: str, other: str) -> UsageError:
    """Return the error for two images of one name in a folder."""
    first, second = (name if name.isprintable() else repr(name) for name in sorted((one, other)))
    return UsageError(f"{folder}: expected one image of each name, found {first} and {second}")


def unread(folder: Path) -> Counter[str]:
    """Count the files of a folder in image formats that are not read, by suffix."""
    return Counter(os.path.splitext(name)[1].lower() for name in listed(folder, UNREAD_SUFFIXES))


def unread_in(root: Path) -> Counter[str]:
    """Count the files of a folder and its subfolders in image formats that are not read, by suffix."""
    return sum((unread(Path(place)) for place, _, _ in os.walk(root)), Counter())


def unread_line(endings: Counter[str]) -> str:
    """Return the line of a message on files that are not read."""
    found = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
    first = min(endings, default=".gif")
    return f"files of formats that are not read: {found}; convert them, e.g. `mogrify -format jpg *{first}`"


def instead_of(path: Path) -> str | None:
    """Return the name of a file in place of a missing image, in a format that is not read; None if there is none."""
    key = name_key(path.stem)
    names = _names(path.parent, _stamp(path.parent))
    return next((name for name in names.get(key, ()) if os.path.splitext(name)[1].lower() in UNREAD_SUFFIXES), None)


def why_missing(path: Path) -> str:
    """Describe what is in place of a missing image, as the end of a message; empty if nothing is similar."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    other = instead_of(path)
    if other is not None:
        ending = os.path.splitext(other)[1]
        return f"; {other!r} lies there, a format that is not read: convert it, e.g. `mogrify -format jpg *{ending}`"
    names = [name for group in _names(path.parent, _stamp(path.parent)).values() for name in group]
    return did_you_mean(path.name, names)


def _stamp(folder: Path) -> int:
    return folder.stat().st_mtime_ns if folder.is_dir() else 0


@lru_cache(maxsize=4)
def _names(folder: Path, stamp: int) -> dict[str, tuple[str, ...]]:
    """Group the names of a folder's files by their `name_key`; ``stamp`` invalidates the cache when the folder changes."""
    groups: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        stem, ending = os.path.splitext(name)
        if ending.lower() in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES):
            groups.setdefault(name_key(stem), []).append(name)
            groups.setdefault(name_key(name), []).append(name)
    return {key: tuple(dict.fromkeys(group)) for key, group in groups.items()}
