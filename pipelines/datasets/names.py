"""Names of images, as people write them in lists and tables, and ids that are safe as file names."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Sequence

from pipelines.errors import UsageError

MAX_ID_BYTES = 200  # leaves room for a suffix in a 255-byte file name
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff",
)  # fmt: skip
"""Suffixes of files that may be read: Pillow's suffixes of the formats of `image.FORMATS`."""
UNREAD_SUFFIXES = (
    ".gif", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".svg", ".psd", ".xcf", ".tga", ".ppm",
    ".pgm", ".pbm", ".pnm", ".ico", ".exr", ".hdr", ".dcm", ".eps", ".pdf", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw",
    ".orf", ".rw2", ".raf",
)  # fmt: skip
"""Suffixes of images in formats that are not read. Messages name such files instead of calling the images missing."""
IMAGE_FOLDERS = {
    "jpegimages", "images", "image", "imgs", "img", "photos", "segmentationclass", "segmentationclassaug", "segmentationobject",
    "train", "val", "valid", "test", "train2014", "val2014", "train2017", "val2017", "test2017",
}  # fmt: skip
"""Folders that lists put before a name without suffix."""
_MANY_NAMES = 20_000  # because difflib compares with every name


def image_id_of(text: str, where: str) -> str:
    r"""Return the image id of a name or path in a list, a table or an export.

    Outer space is removed, accents are composed (NFC), and a path to an image is reduced to its name.

    Args:
        text: ``x``, ``x.jpg``, ``/JPEGImages/x.jpg``, ``C:\photos\x.jpg``, ``https://host/x.jpg?size=1`` and the like.
        where: File and line or entry, for the error message.

    Raises:
        UsageError: As in `check_image_id`; a path without an image suffix or a known folder, or with ``..``, is refused, too.
    """
    name = text.strip()
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)
    if "/" in name or "\\" in name:
        path = name.split("?d=", 1)[1] if "?d=" in name else re.sub(r"[?#].*", "", name) if "://" in name else name
        *folders, last = re.split(r"[/\\]+", path)
        known = last.lower().endswith(IMAGE_SUFFIXES) or (bool(folders) and folders[-1].lower() in IMAGE_FOLDERS)
        name = last if known and ".." not in folders else name
    return check_image_id(without_suffix(name), where)


def without_suffix(name: str) -> str:
    """Return a file name without the suffix of an image; other dots are part of the id."""
    stem, dot, suffix = name.rpartition(".")
    return stem if (dot + suffix).lower() in IMAGE_SUFFIXES else name


def listed_name(image_id: str) -> str:
    """Return the name by which lists and tables have an image, so that `image_id_of` gives its id back."""
    return image_id if without_suffix(image_id) == image_id else image_id + IMAGE_SUFFIXES[0]


def check_image_id(image_id: str, where: str) -> str:
    """Return an image id if it is safe as a file name.

    Args:
        image_id: Id from a file that others may have written.
        where: File and line or entry, for the error message.

    Raises:
        UsageError: The id is empty, hidden, too long, or has separators or control characters.
    """
    if any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in image_id):
        problem = "has control characters"
    elif "/" in image_id or "\\" in image_id:
        problem = "has path separators"
    elif not image_id or image_id.startswith(".") or image_id != image_id.strip():
        problem = "is empty, starts with '.', or has space around it"
    elif len(image_id.encode()) > MAX_ID_BYTES:
        problem = f"is longer than {MAX_ID_BYTES} bytes"
    else:
        return image_id
    shown = image_id if len(image_id) <= 60 else image_id[:60] + "..."
    raise UsageError(f"{where}: image id {shown!r} {problem}; expected a file name without folder or extension")


def name_key(name: str) -> str:
    """Return a key that spellings of one file name share: case, composition of accents and image suffixes do not count."""
    return without_suffix(unicodedata.normalize("NFKC", name.strip()).casefold())


def some(names: Sequence[str]) -> str:
    """Return the first names of a list, and the number of the others."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return ``; did you mean 'x'?`` with the nearest known name, or nothing."""
    key, keys = name_key(name), {name_key(other): other for other in known}
    near = keys.get(key) or next((other for spelling, other in keys.items() if without_suffix(spelling) == key), None)
    if near is None and len(known) <= _MANY_NAMES:
        near = next((keys[one] for one in difflib.get_close_matches(key[:80], keys, n=1, cutoff=0.8)), None)
    return f"; did you mean {near!r:.80}?" if near else ""
