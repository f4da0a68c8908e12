"""Common parts of the export formats: label maps arrive one by one, and a folder is filled."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.classes import ClassList, palette
from pipelines.errors import UsageError
from pipelines.options.export import ExportOptions

IGNORE_NAME = "_ignore"
"""Name of the class that ignored pixels become with ``--ignore class``."""


@dataclass(frozen=True)
class Item:
    """An image with its label map.

    Attributes:
        number: Place in the work list from 1, the same in every shard.
        image_id: Id of the image.
        photo: Path of the image; the file may be missing.
        label_map: ``(H, W)`` uint8, with ignored pixels as ``Plan.ignore`` sets them.
        confidence: Confidence in [0, 1], or None if it is unknown or the format does not store it.
    """

    number: int
    image_id: str
    photo: Path
    label_map: NDArray[np.uint8]
    confidence: float | None = None

    @property
    def file_name(self) -> str:
        """The id with the suffix of the image, because an export has one flat folder of images."""
        return self.image_id + self.photo.suffix


@dataclass
class Plan:
    """The folder that a format fills, and its settings.

    Attributes:
        folder: Empty folder, which replaces the export once all is written.
        split: Name of the split.
        classes: The class list.
        options: Options of the export.
        ignore: Meaning of ignored pixels: ``background``, ``class`` or ``keep``.
        suffix: Suffix of all images, or None if they differ.
        photo_root: Folder that holds all images.
        place: Final path of the folder.
        said: Messages of the format for the user.
    """

    folder: Path
    split: str
    classes: ClassList
    options: ExportOptions
    ignore: str
    suffix: str | None
    photo_root: Path
    place: Path
    said: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Names by value, background first; ignored pixels are last if they are a class."""
        names = self.classes.label_map_names
        return (*names, IGNORE_NAME) if self.ignore == "class" else names

    @property
    def colours(self) -> list[tuple[int, int, int]]:
        """RGB by value, all different."""
        return [(int(red), int(green), int(blue)) for red, green, blue in palette()[: len(self.names)]]

    @property
    def labels(self) -> list[tuple[str, str]]:
        """Names and colours such as ``#800000``, without background."""
        return [(name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in zip(self.names, self.colours, strict=True)][
            1:
        ]


Add = Callable[[Item], None]
"""Takes the next image; after an `ImageError` the export holds nothing of this image."""


@dataclass(frozen=True)
class Format:
    """A format of exports.

    Attributes:
        write: Opens the files of an export; they are complete after the block ends without an error.
        ignore: Possible meanings of ignored pixels, the default first.
        takes: Options that this format uses, beside those of all formats.
        photos: Whether the export contains the images.
        confidence: Whether the format stores the confidence of each label map; only then is it computed.
    """

    write: Callable[[Plan], AbstractContextManager[Add]]
    ignore: tuple[str, ...]
    takes: tuple[str, ...] = ()
    photos: bool = False
    confidence: bool = False


def png_bytes(pixels: NDArray[np.uint8], colours: NDArray[np.uint8] | None) -> bytes:
    """Encode a PNG of one channel.

    Args:
        pixels: ``(H, W)``.
        colours: Palette ``(256, 3)``; None: greyscale, for readers that use colours in place of indices.
    """
    picture, out = Image.fromarray(pixels, mode="L"), io.BytesIO()
    if colours is not None:
        picture.putpalette(colours.tobytes())
    picture.save(out, format="PNG")
    return out.getvalue()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file of an export, whose folder appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def place_photo(plan: Plan, item: Item, target: Path) -> None:
    """Put an image into an export, as a link or a copy."""
    if plan.options.photos == "none":
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if plan.options.photos == "link":
        target.symlink_to(item.photo.resolve())
    else:
        shutil.copyfile(item.photo, target)


class JsonArray:
    """A JSON list that is written entry by entry.

    Args:
        file: File open for text; the entries are separated by commas, and the caller writes the brackets.
    """

    def __init__(self, file: TextIO) -> None:
        self._file, self._first = file, True

    def add(self, entry: Any) -> None:
        """Write the next entry."""
        self._file.write(("" if self._first else ",\n") + json.dumps(entry, ensure_ascii=False, separators=(",", ":")))
        self._first = False


@contextmanager
def text_files(folder: Path, *names: str) -> Iterator[list[TextIO]]:
    """Open text files of an export for writing."""
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        yield [stack.enter_context((folder / name).open("w", encoding="utf-8")) for name in names]


def refuse_names(plan: Plan, bad: Callable[[str], bool], why: str, instead: str) -> None:
    """Refuse class names that a format cannot hold.

    Raises:
        UsageError: There is such a name; the message has the first one.
    """
    name = next((name for name in plan.names if bad(name)), None)
    if name is not None:
        raise UsageError(f"class {name!r:.80} cannot be written in this format: {why}", instead)
