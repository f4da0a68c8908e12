"""Image ids: which ones are safe, and split files that list them."""

from __future__ import annotations

import errno
import re
import unicodedata
from pathlib import Path

from pipelines.errors import UsageError

MAX_ID_BYTES = 200  # leaves room for a suffix in a 255-byte file name


def check_image_id(image_id: str, where: str) -> str:
    """Return an image id if it is safe as a file name.

    Args:
        image_id: Id from a file that others may have written.
        where: File and line or entry, for the error.

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


def refuse_irregular(path: Path) -> None:
    """Refuse pipes and devices, which might never end.

    Raises:
        OSError: It is one.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "no regular file")


def read_regular(path: Path) -> bytes:
    """Content of a file that others may have laid there: not of a pipe or device, which might never end.

    Raises:
        OSError: It cannot be read; ``strerror`` says why.
    """
    try:
        refuse_irregular(path)
        return path.read_bytes()
    except ValueError as error:  # a null byte in the path
        raise OSError(errno.EINVAL, str(error)) from None


def split_file(split: str) -> Path | None:
    """Path of a split given as ``.txt``; None where it is a split name.

    Raises:
        UsageError: A name that could not be a file's.
    """
    if split.lower().endswith(".txt"):
        return Path(split)
    check_image_id(split, "--split")
    return None


def read_split(path: Path) -> tuple[str, ...]:
    """Image ids of a split file, one a line; blank lines and lines that start with ``#`` are passed over.

    Raises:
        UsageError: The file cannot be read, has no ids, or an id is unsafe or stands twice.
    """
    try:
        lines = re.split("\r\n|\r|\n", read_regular(path).decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot read the split: {error.strerror}", "--split NAME or --split FILE.txt") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected a split of UTF-8 lines, found other bytes", "--split FILE.txt") from None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        image_id = line.strip()
        if not image_id or image_id.startswith("#"):
            continue
        check_image_id(image_id, f"{path}:{number}")
        if image_id in seen:
            raise UsageError(f"{path}:{number}: image id {image_id!r} stands on line {seen[image_id]} already")
        seen[image_id] = number
    if not seen:
        raise UsageError(f"{path}: expected one image id a line, found none", "--split")
    return tuple(seen)
