"""Reading of split files, which are lists of images."""

from __future__ import annotations

import codecs
import errno
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.datasets.names import IMAGE_FOLDERS, IMAGE_SUFFIXES, check_image_id, image_id_of, without_suffix
from pipelines.errors import UsageError

_HEADERS = {"image", "images", "image_id", "imageid", "filename", "file_name", "file", "id", "path", "image_path", "name"}
_NUMBER = re.compile(r"[+-]?\d{1,9}").fullmatch


def refuse_irregular(path: Path) -> None:
    """Refuse pipes and devices, whose content might never end.

    Raises:
        OSError: The path is one.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "no regular file")


def read_regular(path: Path) -> bytes:
    """Read a file of unknown origin, but no pipe or device, whose content might never end.

    Raises:
        OSError: The file cannot be read; ``strerror`` has the reason.
    """
    try:
        refuse_irregular(path)
        return path.read_bytes()
    except ValueError as error:  # a null byte in the path
        raise OSError(errno.EINVAL, str(error)) from None


def split_file(split: str) -> Path | None:
    """Return the path of a split given as ``.txt``; None if it is the name of a split.

    Raises:
        UsageError: The name cannot be that of a file.
    """
    if split.lower().endswith(".txt"):
        return Path(split)
    if "/" in split or "\\" in split or split.lower().endswith((".csv", ".tsv", ".lst", ".list")):
        raise UsageError(f"--split: expected the name of a split or a list FILE.txt, found {split!r:.80}", "rename it FILE.txt")
    check_image_id(split, "--split")
    return None


@dataclass(frozen=True)
class Split:
    """The content of a split file.

    Attributes:
        ids: Image ids, in the order of the file.
        understood: Notes on what was read otherwise than as one id per line; empty if nothing was.
    """

    ids: tuple[str, ...]
    understood: tuple[str, ...]


def read_split(path: Path, known: Container[str] = ()) -> tuple[str, ...]:
    """Return the image ids of a split file; see `parse_split`."""
    return parse_split(path, known).ids


def parse_split(path: Path, known: Container[str] = (), name: Callable[[str, str], str] = image_id_of) -> Split:
    """Read a split file: one image per line, by id, file name or path. Blank lines and lines starting with ``#`` do not count.

    Words after the image are passed over if they are a path (of a mask) or integers (flags of one class, or class numbers).
    Any other text after a space belongs to the id.

    Args:
        path: The file, in UTF-8 or with the mark of UTF-16.
        known: Ids of images. An id with the suffix of a file name, or with a number after a space, is not shortened if it is
            among these.
        name: Makes an image id of a path; its arguments are the text and its place.

    Raises:
        UsageError: The file cannot be read, has no ids, has class names after images, or an id is unsafe or occurs twice.
    """
    lines = {number: line.strip() for number, line in enumerate(_lines(path), start=1)}
    lines = {number: _spaced(_bare(line, known)) for number, line in lines.items() if line and not line.startswith("#")}
    first = next(iter(lines), 0)
    if len(lines) > 1 and lines[first].lower() in _HEADERS and known and lines[first] not in known:
        del lines[first]  # the name of a column
    cut, understood = _columns(lines.values(), known)
    if not cut:
        _refuse_labels(path, lines, known)
    seen: dict[str, int] = {}
    paths = False
    for number, line in lines.items():
        text = line.split(None, 1)[0].rstrip(",;") if cut else line
        image_id = name(text, f"{path}:{number}")
        if image_id != text and text in known and image_id not in known:
            image_id = check_image_id(text, f"{path}:{number}")
        paths = paths or image_id != text
        if image_id in seen:
            raise UsageError(f"{path}:{number}: image id {image_id!r} is on line {seen[image_id]} already")
        seen[image_id] = number
    if not seen:
        raise UsageError(f"{path}: expected one image id a line, found none", "--split")
    if paths:
        understood = ("folders and suffixes of the images are cut off", *understood)
    return Split(tuple(seen), tuple(f"{path.name}: {words}" for words in understood))


def _refuse_labels(path: Path, lines: Mapping[int, str], known: Container[str]) -> None:
    """Refuse a list with class names after the images, which is a table of labels."""
    number, line = next(iter(lines.items()), (0, ""))
    first, *rest = re.split(r"[,;\s]+", line)
    image = first.lower().endswith(IMAGE_SUFFIXES) or first in known
    if image and any(rest) and line not in known and without_suffix(line) not in known:
        hint = "a split holds images alone; `--labels FILE.csv` takes a table, with image,labels as its first line"
        raise UsageError(f"{path}:{number}: expected one image a line, found {' '.join(rest)!r:.60} behind {first!r:.60}", hint)


def _lines(path: Path) -> list[str]:
    try:
        content = read_regular(path)
        if b"\0" in content and encoding_of(content) != "utf-16":
            raise UsageError(f"{path}: expected a split of UTF-8 lines, found UTF-16 without its mark", "save it as UTF-8")
        return re.split("\r\n|\r|\n", content.decode(encoding_of(content)))
    except OSError as error:
        raise UsageError(f"{path}: cannot read the split: {error.strerror}", "--split NAME or --split FILE.txt") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected a split of UTF-8 lines, found other bytes", "--split FILE.txt") from None


def encoding_of(start: bytes) -> str:
    """Return the encoding of a text by its byte order mark (Excel's "Unicode text", PowerShell's ``>``), or UTF-8."""
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _bare(line: str, known: Container[str]) -> str:
    """Return a line without the quotes and the last separator that tables add to a name."""
    if line in known:
        return line
    line = line.rstrip(",;").strip()
    return line[1:-1] if len(line) > 2 and line[0] == line[-1] and line[0] in "\"'" else line


def _spaced(line: str) -> str:
    """Return a line of a comma table whose first column is a file name, with spaces instead of commas."""
    return line.replace(",", " ") if line.partition(",")[0].strip().lower().endswith(IMAGE_SUFFIXES) else line


def _is_file(word: str) -> bool:
    """Return whether a word is an image's file name, or a path in a folder of images or masks."""
    folder = re.split(r"[/\\]", word)[-2:-1]
    return word.lower().endswith(IMAGE_SUFFIXES) or (bool(folder) and folder[0].lower() in IMAGE_FOLDERS)


def _columns(lines: Iterable[str], known: Container[str]) -> tuple[bool, tuple[str, ...]]:
    """Return whether the first word of each line is the image, and notes on the other words."""
    numbers: set[int] = set()
    firsts: list[str] = []
    masks = single = False
    for line in lines:
        first, *rest = line.split()
        firsts.append(first)
        if rest and line in known:
            return False, ()
        if rest and all(_NUMBER(word) for word in rest):
            numbers.update(map(int, rest))
        elif rest and _is_file(first) and _is_file(rest[0]) and all(_NUMBER(word) for word in rest[1:]):
            masks = True
        elif rest:
            return False, ()
        else:
            single = True
    if not (masks or numbers) or len(set(firsts)) < len(firsts):
        return False, ()
    if masks:
        return True, ("the second column, paths of masks, is passed over",)
    if numbers <= {-1, 0, 1} and not single:
        return True, ("the second column, flags of one class, is passed over: every image of the list is taken",)
    return True, ("the numbers behind each image, of classes, are passed over",)
