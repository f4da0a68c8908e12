"""Label files: CSV ``image,labels``, JSON ``{image: [names]}`` and JSON lines ``{"image": ..., "labels": [...]}``."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.datasets.classes import ClassList
from pipelines.datasets.splits import check_image_id
from pipelines.errors import UsageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_COLUMNS = ("image", "labels")
_Row = tuple[str, object, object]  # where, image, class names


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
    return {image_id: classes.indices(names, where) for where, image_id, names in _checked(path)}


def label_names(path: Path) -> tuple[str, ...]:
    """Every class name that a label file uses, sorted; errors as `read_label_file`."""
    return tuple(sorted({name for _, _, names in _checked(path) for name in names}))


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


def _checked(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    readers = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: expected a label file .csv, .json or .jsonl, found {path.suffix!r}", "--labels")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot read labels: {error.strerror}", "--labels") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: expected UTF-8, found byte {error.object[error.start]:#x} at {error.start}", "--labels"
        ) from None
    seen: dict[str, str] = {}
    for where, image, names in readers[path.suffix.lower()](path, text):
        if not isinstance(image, str):
            raise UsageError(f"{where}: expected an image name, found {image!r}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"{where}: expected a list of class names, found {names!r}")
        image_id = check_image_id(_without_suffix(image.strip()), where)
        if image_id in seen:
            raise UsageError(f"{where}: image {image_id!r} stands twice, first in {seen[image_id]}")
        seen[image_id] = where
        yield where, image_id, names
    if not seen:
        raise UsageError(f"{path}: expected at least one image, found none", "--labels")


def _without_suffix(image: str) -> str:
    stem, dot, suffix = image.rpartition(".")
    return stem if (dot + suffix).lower() in IMAGE_SUFFIXES else image  # ids may have dots of their own


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(rows, [])]
        if sorted(header) != sorted(_COLUMNS):
            raise UsageError(f"{path}:1: expected columns image,labels, found {','.join(header)!r}", "--labels")
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise UsageError(f"{where}: expected image,labels with class names separated by ';', found {len(row)} columns")
            cells = dict(zip(header, row, strict=True))
            yield where, cells["image"], [name.strip() for name in cells["labels"].split(";") if name.strip()]
    except csv.Error as error:
        raise UsageError(f"{path}:{rows.line_num}: broken CSV: {error}") from None


def _json_rows(path: Path, text: str) -> Iterator[_Row]:
    # Objects come as tuples of pairs: a doubled key must reach the caller, not be lost.
    pairs = _parse(text, path, 1)
    if not isinstance(pairs, tuple):
        raise UsageError(f"{path}: expected an object {{image: [class names]}}, found a {type(pairs).__name__}", "--labels")
    for image, names in pairs:
        yield f"{path}: entry {image!r}", image, names


def _jsonl_rows(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        pairs = _parse(line, path, number)
        if not isinstance(pairs, tuple) or sorted(key for key, _ in pairs) != sorted(_COLUMNS):
            raise UsageError(f'{path}:{number}: expected {{"image": ..., "labels": [...]}}, found {line.strip()[:60]!r}')
        entry = dict(pairs)
        yield f"{path}:{number}", entry["image"], entry["labels"]


def _parse(text: str, path: Path, line: int) -> object:
    try:
        return json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{line + error.lineno - 1}: broken JSON: {error.msg}", "--labels") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}:{line}: broken JSON: {error}", "--labels") from None
