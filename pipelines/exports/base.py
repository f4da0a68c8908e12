"""What an export is to every format: label maps that come one by one, and a folder that is filled."""

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
"""Name of the class that unsure pixels become with ``--ignore class``."""


@dataclass(frozen=True)
class Item:
    """An image with its label map.

    Attributes:
        number: Place in the work list from 1, the same in every shard.
        image_id: Its id.
        photo: Its file; it may be missing.
        label_map: ``(H, W)`` uint8, what is unsure written as the export has it.
        confidence: From 0 to 1, or None if nothing is known of it or the format does not ask for it.
    """

    number: int
    image_id: str
    photo: Path
    label_map: NDArray[np.uint8]
    confidence: float | None = None

    @property
    def file_name(self) -> str:
        """The id with the ending of the photo: folders of photos are flat in an export."""
        return self.image_id + self.photo.suffix


@dataclass
class Plan:
    """What a format fills.

    Attributes:
        folder: Empty; it takes the place of the export when everything is written.
        split: Name of the images.
        classes: The classes.
        options: How to write.
        ignore: What unsure pixels are: ``background``, ``class`` or ``keep``.
        suffix: Ending of all photos, or None if they differ.
        photo_root: Folder that holds all photos.
        place: Where the folder will lie.
        said: What the format says of itself, for people.
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
        """Names by value, background first; unsure pixels last where they are a class."""
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
"""Takes the next image; it may raise an `ImageError`, and then nothing of the image is in the export."""


@dataclass(frozen=True)
class Format:
    """A format of exports.

    Attributes:
        write: Opens the files of an export; on leaving without an error they are complete.
        ignore: What unsure pixels can be, the default first.
        takes: Options that it has a meaning for, beside those of all formats.
        photos: The images are part of it.
        confidence: It has a place for the confidence of each label map, which is computed for it.
    """

    write: Callable[[Plan], AbstractContextManager[Add]]
    ignore: tuple[str, ...]
    takes: tuple[str, ...] = ()
    photos: bool = False
    confidence: bool = False


def png_bytes(pixels: NDArray[np.uint8], colours: NDArray[np.uint8] | None) -> bytes:
    """A PNG of one channel.

    Args:
        pixels: ``(H, W)``.
        colours: Palette ``(256, 3)``; None: greyscale, for readers that would look at colours instead of indices.
    """
    picture, out = Image.fromarray(pixels, mode="L"), io.BytesIO()
    if colours is not None:
        picture.putpalette(colours.tobytes())
    picture.save(out, format="PNG")
    return out.getvalue()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file of an export, which is not seen before all of it is there."""
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
    """A list of JSON that is written entry by entry.

    Args:
        file: Open for text; the entries are separated by commas, brackets are the caller's.
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
        UsageError: The first of them.
    """
    name = next((name for name in plan.names if bad(name)), None)
    if name is not None:
        raise UsageError(f"class {name!r:.80} cannot stand in this format: {why}", instead)
