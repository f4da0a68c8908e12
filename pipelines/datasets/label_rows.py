"""The rows of label files, independent of the format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipelines.datasets.names import image_id_of
from pipelines.errors import UsageError

IMAGE_NAMES = (
    "image", "filename", "file_name", "file", "filepath", "file_path", "path", "image_path", "img_path", "image_name",
    "img_name", "imagename", "image_file", "images", "img", "image_id", "imageid", "img_id", "photo", "picture", "id", "key",
    "url",
)  # fmt: skip
"""Names of columns and keys with the image, the likeliest first."""
LABEL_NAMES = (
    "labels", "tags", "classes", "categories", "class_names", "label_names", "names", "keywords", "objects", "targets",
    "choice", "label", "tag", "class", "category", "class_name", "category_name", "label_name", "labelname", "name", "object",
    "target",
)  # fmt: skip
"""Names of columns and keys with the class names, the likeliest first."""
ONE_LABEL = frozenset(LABEL_NAMES[10:])
"""Names of such columns in tables with one row per label, where an image may have several rows."""


NameOf = Callable[[str, str], str]
"""Makes an image id of a name or path; the second text is the place of the path, for an error message."""


_NAMES = 'write ["name", ...]; numbers and boxes are not read: `ssr labels` converts exports in the forms of COCO, VOC and YOLO'


class Row(NamedTuple):
    """One image of a label file. It is cheap to make, because names and ids are computed only when used."""

    image_id: str
    key: str | tuple[str, ...]
    """The class names, as a tuple or as the cell of a table."""
    path: Path
    place: int | str
    """Line number, or another description of the place."""
    image: str = ""
    """The image's path, if the file gives one."""

    def names(self) -> list[str]:
        """Return the class names."""
        return split_cell(self.key) if isinstance(self.key, str) else list(self.key)

    def id_by(self, name: NameOf) -> str:
        """Return the image id, with ``name`` to make ids of paths."""
        return name(self.image, self.where()) if self.image else self.image_id

    def where(self) -> str:
        """Return file and line, for a message."""
        return where(self.path, self.place)


def where(path: Path, place: int | str) -> str:
    """Return file and line or entry, for a message."""
    return f"{path}:{place}" if isinstance(place, int) else f"{path}: {place}"


def split_cell(cell: str) -> list[str]:
    """Split a cell of a table into class names, separated by ``;``."""
    return [name.strip() for name in cell.split(";") if name.strip()]


def row_of(path: Path, place: int | str, image: object, names: object) -> Row:
    """Check an image and its class names, and return their row.

    Raises:
        UsageError: The image id is unsafe, or the class names are no list of texts.
    """
    if not isinstance(image, str):
        raise UsageError(f"{where(path, place)}: expected an image name, found {image!r:.60}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{where(path, place)}: expected a list of class names, found {names!r:.60}", _NAMES)
    inside = image if "/" in image or "\\" in image else ""
    return Row(image_id_of(image, where(path, place)), tuple(names), path, place, inside)


def column_key(name: str) -> str:
    """Return the name of a column or key without variations: case, outer space, ``-`` and space for ``_``."""
    return "_".join(name.strip(" \t\"'\ufeff").casefold().replace("-", " ").split())
