"""Reading of label files that are JSON: ``{image: [names]}``, a list of records, JSON lines, and Label Studio's export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pipelines.datasets.label_rows import IMAGE_NAMES, LABEL_NAMES, Row, column_key, row_of, split_cell, where
from pipelines.errors import UsageError

Pairs = tuple[tuple[str, Any], ...]
"""A JSON object as pairs, so that the caller can find duplicate keys."""
_EXPECTED = "an object {image: [class names]}"


def json_rows(path: Path, file: TextIO) -> Iterator[Row]:
    """Read the rows of an object ``{image: [class names]}`` or of a list of records.

    Raises:
        UsageError: The file is neither.
    """
    content = _parse(file.read(), path, 1)
    if isinstance(content, list) and content and all(_is_record(item) for item in content):
        for number, item in enumerate(content):
            yield _record(path, f"entry {number}", item)
        return
    if not isinstance(content, tuple):
        raise UsageError(f"{path}: expected {_EXPECTED}, found a {type(content).__name__}", "--labels")
    if {"images", "annotations", "categories"} <= {key for key, _ in content}:
        raise UsageError(f"{path}: expected {_EXPECTED}, found COCO annotations", "ssr labels FILE labels.csv --from coco")
    for image, names in content:
        yield row_of(path, f"entry {image!r:.60}", image, names)


def jsonl_rows(path: Path, file: TextIO) -> Iterator[Row]:
    """Read the rows of JSON lines.

    Raises:
        UsageError: A line is no record of an image and its labels.
    """
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        record = _parse(line.removesuffix("\n"), path, number)
        if not _is_record(record):
            raise UsageError(f'{path}:{number}: expected {{"image": ..., "labels": [...]}}, found {line.strip()[:60]!r}')
        yield _record(path, number, record)


def _is_record(item: object) -> bool:
    """Return whether an object names an image and its labels, each key once."""
    if not isinstance(item, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in item):
        return False
    keys = [key for key, _ in item]
    if len(set(keys)) < len(keys):
        return False
    names = {column_key(key) for key in keys}
    return {"data", "annotations"} <= names or (not names.isdisjoint(IMAGE_NAMES) and not names.isdisjoint(LABEL_NAMES))


def _record(path: Path, place: int | str, item: Any) -> Row:
    by_key = {column_key(key): value for key, value in item}
    if {"data", "annotations"} <= by_key.keys():
        return _label_studio(path, place, by_key)
    image = next(by_key[name] for name in IMAGE_NAMES if name in by_key)
    key = next(name for name in LABEL_NAMES if name in by_key)
    names = by_key[key]
    if isinstance(names, tuple) and [name for name, _ in names] == ["choices"]:  # Label Studio's short form
        names = names[0][1]
    return row_of(path, place, image, split_cell(names) if isinstance(names, str) and key != "labels" else names)


def _label_studio(path: Path, place: int | str, task: dict[str, Any]) -> Row:
    """Read a task of Label Studio, in which choices, rectangles, polygons and brushes name classes."""
    data = dict(task["data"]) if isinstance(task["data"], tuple) else {}
    image = next((data[key] for key in ("image", "img", "url") if key in data), None)
    names: list[str] = []
    for annotation in task["annotations"] if isinstance(task["annotations"], list) else ():
        for result in dict(annotation).get("result", ()):
            value = dict(result).get("value")
            for key, found in value if isinstance(value, tuple) else ():
                if key == "choices" or key.endswith("labels"):
                    names += found if isinstance(found, list) else [found]
    return row_of(path, place, image, names)


def _parse(text: str, path: Path, line: int) -> object:
    try:
        return json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where(path, line + error.lineno - 1)}: broken JSON: {error.msg}", "--labels") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where(path, line)}: broken JSON: {error}", "--labels") from None
