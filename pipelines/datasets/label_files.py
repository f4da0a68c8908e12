"""Label files: CSV ``image,labels``, JSON ``{image: [names]}`` and JSON lines ``{"image": ..., "labels": [...]}``."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from pipelines.datasets.classes import ClassList
from pipelines.datasets.splits import check_image_id, refuse_irregular
from pipelines.errors import UsageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_COLUMNS = ("image", "labels")
_PLAIN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,150}").fullmatch
_BLOCK = 1 << 20
_REMEMBERED = 10_000  # combinations of classes that are looked up once


def read_label_file(path: Path, classes: ClassList) -> dict[str, tuple[int, ...]]:
    """Image-level labels of a file, in its order.

    Args:
        path: ``.csv`` (class names separated by ``;``), ``.json`` or ``.jsonl``; images with or without extension.
        classes: Class list that names are looked up in.

    Returns:
        Ascending class indices by image id; an image may have none.

    Raises:
        UsageError: The file cannot be read, a class is unknown, or an image is unsafe or stands twice.
    """
    labels: dict[str, tuple[int, ...]] = {}
    for image_id, present in iter_label_file(path, classes):
        if image_id in labels:
            refuse_twice(path, {image_id})
        labels[image_id] = present
    return labels


def iter_label_file(path: Path, classes: ClassList) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Like `read_label_file`, one image after the other; of CSV and JSON lines no more than some rows are held.

    Whether an image stands twice is left to the caller.
    """
    known: dict[str | tuple[str, ...], tuple[int, ...]] = {}
    for row in _rows(path):
        present = known.get(row.key)
        if present is None:
            present = classes.indices(row.names(), row.where())
            if len(known) < _REMEMBERED:
                known[row.key] = present
        yield row.image_id, present


def refuse_twice(path: Path, suspects: Container[str]) -> None:
    """Look for an image that stands twice.

    Args:
        path: The label file.
        suspects: Ids that may do so.

    Raises:
        UsageError: One of them does; the message says where.
    """
    seen: dict[str, str] = {}
    for row in _rows(path):
        if row.image_id in suspects:
            if row.image_id in seen:
                raise UsageError(f"{row.where()}: image {row.image_id!r} stands twice, first in {seen[row.image_id]}")
            seen[row.image_id] = row.where()


def label_names(path: Path) -> tuple[str, ...]:
    """Every class name that a label file uses, sorted; errors as `read_label_file`."""
    keys: set[str | tuple[str, ...]] = set()
    names: set[str] = set()
    for row in _rows(path):
        if row.key not in keys:
            keys.add(row.key)
            names.update(row.names())
    return tuple(sorted(names))


def select_labels(labels: Mapping[str, tuple[int, ...]], ids: Iterable[str], source: Path) -> dict[str, tuple[int, ...]]:
    """Labels of some images, in their order.

    Raises:
        UsageError: Images have no entry: no entry is not the same as no class.
    """
    wanted = tuple(ids)
    missing = [image_id for image_id in wanted if image_id not in labels]
    if missing:
        raise UsageError(
            f"{source}: no entry for {len(missing)} of {len(wanted)} images, first {missing[0]!r}", "--labels or --split"
        )
    return {image_id: labels[image_id] for image_id in wanted}


def write_label_file(path: Path, labels: Mapping[str, Sequence[int]], classes: ClassList) -> None:
    """Write a label file that `read_label_file` reads back; the format is the suffix's. Readers never see half a file.

    Raises:
        UsageError: Unknown suffix, or the file cannot be written.
    """
    rows = {image_id: [classes.names[index] for index in present] for image_id, present in labels.items()}
    text = io.StringIO(newline="")
    match path.suffix.lower():
        case ".csv":
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows((image_id, ";".join(names)) for image_id, names in rows.items())
        case ".json":
            body = ",\n".join(f"{_json(image_id)}: {_json(names)}" for image_id, names in rows.items())
            text.write(f"{{\n{body}\n}}\n")
        case ".jsonl":
            text.writelines(_json({"image": image_id, "labels": names}) + "\n" for image_id, names in rows.items())
        case suffix:
            raise UsageError(f"{path}: expected a label file .csv, .json or .jsonl, found {suffix!r}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot write labels: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


class _Row(NamedTuple):
    """One image of a label file: cheap to make, what is seldom wanted is worked out when asked for."""

    image_id: str
    key: str | tuple[str, ...]
    """The class names, as a tuple or as they stand in a CSV."""
    path: Path
    place: int | str
    """Line number, or what else tells where it stands."""

    def names(self) -> list[str]:
        """Class names."""
        return _split_names(self.key) if isinstance(self.key, str) else list(self.key)

    def where(self) -> str:
        """File and line, for a message."""
        return _where(self.path, self.place)


def _where(path: Path, place: int | str) -> str:
    return f"{path}:{place}" if isinstance(place, int) else f"{path}: {place}"


def _split_names(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(";") if name.strip()]


def _rows(path: Path) -> Iterator[_Row]:
    readers = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: expected a label file .csv, .json or .jsonl, found {path.suffix!r}", "--labels")
    found = False
    try:
        refuse_irregular(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in readers[path.suffix.lower()](path, file):
                found = True
                yield row
    except OSError as error:
        raise UsageError(f"{path}: cannot read labels: {error.strerror}", "--labels") from None
    except UnicodeDecodeError as error:
        error = _of_whole_file(path, error)
        raise UsageError(
            f"{path}: expected UTF-8, found byte {error.object[error.start]:#x} at {error.start}", "--labels"
        ) from None
    if not found:
        raise UsageError(f"{path}: expected at least one image, found none", "--labels")


def _of_whole_file(path: Path, error: UnicodeDecodeError) -> UnicodeDecodeError:
    """The same error, with its place in the file, not in what was read of it last."""
    try:
        path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as whole:
        return whole
    return error


def _row(path: Path, place: int | str, image: object, names: object) -> _Row:
    where = _where(path, place)
    if not isinstance(image, str):
        raise UsageError(f"{where}: expected an image name, found {image!r:.60}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{where}: expected a list of class names, found {names!r:.60}")
    return _Row(check_image_id(_without_suffix(image.strip()), where), tuple(names), path, place)


def _without_suffix(image: str) -> str:
    stem, dot, suffix = image.rpartition(".")
    return stem if (dot + suffix).lower() in IMAGE_SUFFIXES else image  # ids may have dots of their own


def _csv_rows(path: Path, file: TextIO) -> Iterator[_Row]:
    lines, header = 1, file.readline()
    if header.strip() == "image,labels":  # rows that need no CSV parser, a block of lines at a time: five times as fast
        while block := file.read(_BLOCK) + file.readline():
            block = block.replace("\r\n", "\n")
            if '"' in block or "\r" in block or "\0" in block:
                yield from _parsed_csv_rows(
                    path, itertools.chain(["image,labels\n"], io.StringIO(block, newline=""), file), lines - 1
                )
                return
            for line in block.removesuffix("\n").split("\n"):
                lines += 1
                image, comma, names = line.partition(",")
                if comma and "," not in names and _PLAIN_ID(image):
                    yield _Row(image[:-4] if image.endswith(".jpg") else _without_suffix(image), names, path, lines)
                elif line:
                    yield from _parsed_csv_rows(path, ["image,labels", line], lines - 2)
        return
    yield from _parsed_csv_rows(path, itertools.chain([header], file), 0)


def _parsed_csv_rows(path: Path, lines: Iterable[str], before: int) -> Iterator[_Row]:
    rows = csv.reader(lines, strict=True)
    try:
        header = [column.strip() for column in next(rows, [])]
        if sorted(header) != sorted(_COLUMNS):
            raise UsageError(f"{path}:1: expected columns image,labels, found {','.join(header)!r:.60}", "--labels")
        for row in rows:
            if row:
                yield _csv_row(path, before + rows.line_num, header, row)
    except csv.Error as error:
        raise UsageError(f"{path}:{before + rows.line_num}: broken CSV: {error}") from None


def _csv_row(path: Path, place: int, header: list[str], row: list[str]) -> _Row:
    if len(row) != len(header):
        raise UsageError(f"{path}:{place}: expected image,labels with class names separated by ';', found {len(row)} columns")
    cells = dict(zip(header, row, strict=True))
    return _row(path, place, cells["image"], _split_names(cells["labels"]))


def _json_rows(path: Path, file: TextIO) -> Iterator[_Row]:
    # Objects come as tuples of pairs: a doubled key must reach the caller, not be lost.
    pairs = _parse(file.read(), path, 1)
    if not isinstance(pairs, tuple):
        raise UsageError(f"{path}: expected an object {{image: [class names]}}, found a {type(pairs).__name__}", "--labels")
    for image, names in pairs:
        yield _row(path, f"entry {image!r:.60}", image, names)


def _jsonl_rows(path: Path, file: TextIO) -> Iterator[_Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        pairs = _parse(line.removesuffix("\n"), path, number)
        if not isinstance(pairs, tuple) or sorted(key for key, _ in pairs) != sorted(_COLUMNS):
            raise UsageError(f'{path}:{number}: expected {{"image": ..., "labels": [...]}}, found {line.strip()[:60]!r}')
        entry = dict(pairs)
        yield _row(path, number, entry["image"], entry["labels"])


def _parse(text: str, path: Path, line: int) -> object:
    try:
        return json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{line + error.lineno - 1}: broken JSON: {error.msg}", "--labels") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}:{line}: broken JSON: {error}", "--labels") from None
