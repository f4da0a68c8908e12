"""Label files: tables such as CSV ``image,labels``, JSON ``{image: [names]}``, JSON lines ``{"image": ..., "labels": ...}``."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipelines.datasets.class_names import clean_class_name
from pipelines.datasets.classes import ClassList
from pipelines.datasets.label_json import json_rows, jsonl_rows
from pipelines.datasets.label_rows import NameOf, Row
from pipelines.datasets.label_tables import TAGS, layout_of, preamble, table_rows
from pipelines.datasets.names import did_you_mean, image_id_of, listed_name
from pipelines.datasets.splits import encoding_of, refuse_irregular
from pipelines.errors import SsrError, UsageError
from pipelines.stores.files import atomic_path

_COLUMNS = ("image", "labels")
_HEAD = 1 << 20
_TABLES = {".txt", ".xlsx", ".xls", ".ods", ".numbers", ".parquet", ".feather", ".dat"}
_REMEMBERED = 10_000  # number of combinations of classes that are cached


def read_label_file(path: Path, classes: ClassList, name: NameOf = image_id_of) -> dict[str, tuple[int, ...]]:
    """Read the image-level labels of a file, in its order.

    Args:
        path: ``.csv``, ``.tsv`` (class names separated by ``;``, or one column per class), ``.json`` or ``.jsonl``; images by
            id, file name or path.
        classes: Class list in which names are looked up.
        name: Makes an image id of a path.

    Returns:
        Ascending class indices by image id; an image may have none.

    Raises:
        UsageError: The file cannot be read, a class is unknown, or an image id is unsafe or occurs twice.
    """
    labels: dict[str, tuple[int, ...]] = {}
    for image_id, present in iter_label_file(path, classes, name):
        if image_id in labels:
            refuse_twice(path, {image_id}, name)
        labels[image_id] = present
    return labels


def iter_label_file(path: Path, classes: ClassList, name: NameOf = image_id_of) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the labels as `read_label_file` does, one image after the other; of CSV and JSON lines only some rows are held.

    The caller has to check whether an image occurs twice.
    """
    known: dict[str | tuple[str, ...], tuple[int, ...]] = {}
    for row in _rows(path):
        present = known.get(row.key)
        if present is None:
            present = classes.indices(row.names(), row.where())
            if len(known) < _REMEMBERED:
                known[row.key] = present
        yield row.id_by(name), present


def refuse_twice(path: Path, suspects: Container[str], name: NameOf = image_id_of) -> None:
    """Search for an image that occurs twice.

    Args:
        path: The label file.
        suspects: Ids that may occur twice.
        name: Makes an image id of a path.

    Raises:
        UsageError: One of them does; the message names both places.
    """
    seen: dict[str, Row] = {}
    for row in _rows(path):
        image_id = row.id_by(name)
        if image_id in suspects:
            first = seen.setdefault(image_id, row)
            if first is not row and first.image != row.image:
                found = f"{first.image or first.image_id!r} in {first.where()} and {row.image or row.image_id!r} have one name"
                hint = "rename one image; dataset `folder` reads sub-folders if the folder of images holds nothing else"
                raise UsageError(f"{row.where()}: {found}", hint)
            if first is not row:
                found = f"image {image_id!r} occurs twice, first in {first.where()}"
                raise UsageError(f"{row.where()}: {found}", "keep one of the two")


def label_names(path: Path) -> tuple[str, ...]:
    """Return every class name that a label file uses, sorted; errors as in `read_label_file`."""
    keys: set[str | tuple[str, ...]] = set()
    names: set[str] = set()
    for row in _rows(path):
        if row.key not in keys:
            keys.add(row.key)
            names.update(clean_class_name(name) for name in row.names())
    return tuple(sorted(names))


def select_labels(
    labels: Mapping[str, tuple[int, ...]], ids: Iterable[str], source: Path, absent_is_empty: bool = False
) -> dict[str, tuple[int, ...]]:
    """Return the labels of some images, in their order.

    Raises:
        UsageError: Images have no entry and ``absent_is_empty`` is off, because no entry is not the same as no class.
    """
    wanted = tuple(ids)
    missing = [image_id for image_id in wanted if image_id not in labels]
    if missing and not absent_is_empty:
        near = did_you_mean(missing[0], labels)
        raise UsageError(
            f"{source}: no entry for {len(missing)} of {len(wanted)} images, first {missing[0]!r}{near}",
            "--labels or --split; --absent-is-empty if images without an entry have no class",
        )
    return {image_id: labels.get(image_id, ()) for image_id in wanted}


def write_label_file(path: Path, labels: Mapping[str, Sequence[int]], classes: ClassList) -> None:
    """Write a label file that `read_label_file` reads back, atomically; the suffix decides the format.

    Raises:
        UsageError: The suffix is unknown, or the file cannot be written.
    """
    rows = {listed_name(image_id): [classes.names[index] for index in present] for image_id, present in labels.items()}
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
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
    except SsrError as error:
        raise UsageError(error.message, "free disk space, or another file for the labels") from error


def write_tag_file(path: Path, rows: Iterable[tuple[str, Sequence[int]]], classes: ClassList) -> None:
    """Write labels from a model as a label file (.csv) whose first line marks them as tags; rows are not held in memory.

    Args:
        path: The file.
        rows: Image ids and class indices.
        classes: Class list of the indices.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(TAGS + "\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows((listed_name(image_id), ";".join(classes.names[index] for index in tags)) for image_id, tags in rows)


def holds_tags(path: Path | None) -> bool:
    """Return whether a label file was written by `write_tag_file`; False for one that cannot be read."""
    if path is None or path.suffix.lower() != ".csv":
        return False
    try:
        with _opened(path) as file:
            return file.readline(len(TAGS) + 2).strip() == TAGS
    except (OSError, UnicodeDecodeError):
        return False


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _rows(path: Path) -> Iterator[Row]:
    readers = {".csv": table_rows, ".tsv": table_rows, ".json": json_rows, ".jsonl": jsonl_rows}
    if path.suffix.lower() not in readers:
        hint = "save the table as CSV" if path.suffix.lower() in _TABLES else "--labels; `ssr labels` converts other formats"
        raise UsageError(f"{path}: expected a label file .csv, .json or .jsonl, found {path.suffix!r}", hint)
    found = False
    try:
        with _opened(path) as file:
            for row in readers[path.suffix.lower()](path, file):
                found = True
                yield row
    except OSError as error:
        raise UsageError(f"{path}: cannot read labels: {error.strerror}", "--labels") from None
    except UnicodeDecodeError as error:
        error = _of_whole_file(path, error)
        hint = f"save it as UTF-8, e.g. `iconv -f cp1252 -t utf-8 {shlex.quote(path.name)}`"
        raise UsageError(f"{path}: expected UTF-8, found byte {error.object[error.start]:#x} at {error.start}", hint) from None
    if not found:
        raise UsageError(f"{path}: expected at least one image, found none", "--labels")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    refuse_irregular(path)
    with path.open("rb") as file:
        encoding = encoding_of(file.read(4))
    with path.open(encoding=encoding, newline="") as text:
        yield text


def understood(path: Path) -> tuple[str, ...]:
    """Return notes on how a label file was read, if it is not of the plain form; errors as in `read_label_file`."""
    if path.suffix.lower() not in {".csv", ".tsv"}:
        return ()
    with _opened(path) as file:
        encoding, header = file.encoding, preamble(file)[1]
        start = header + file.read(_HEAD)
    first = header.strip()
    known = {"image,labels": (), TAGS: ("labels are tags, which `ssr tag` gave by the class names",)}
    words = known[first] if first in known else layout_of(path, start).understood
    words = ("UTF-16", *words) if encoding == "utf-16" else words
    return tuple(f"{path.name}: {word}" for word in ("; ".join(words),) if word)


def _of_whole_file(path: Path, error: UnicodeDecodeError) -> UnicodeDecodeError:
    """Return the error with its place in the file instead of its place in the last block read."""
    try:
        content = path.read_bytes()
        content.decode(encoding_of(content))
    except UnicodeDecodeError as whole:
        return whole
    return error
