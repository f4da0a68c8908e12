"""Reading of label files that are tables: CSV and similar formats, with a column of class names or one column per class."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pipelines.datasets.class_names import clean_class_name, says_nothing
from pipelines.datasets.label_rows import IMAGE_NAMES, LABEL_NAMES, ONE_LABEL, Row, column_key, row_of, split_cell
from pipelines.datasets.names import some, without_suffix
from pipelines.errors import UsageError

_PLAIN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,150}").fullmatch
_BLOCK = 1 << 20
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_PRESENT = {"1", "1.0", "true", "yes", "x"}
_ABSENT = {"0", "0.0", "false", "no", ""}
_BOXES = {"xmin", "x_min", "x1", "bbox", "box", "left", "x_center", "region_id", "bbox_x"}
"""Columns of tables with one row per object."""
_SMALL = re.compile(r"-?\d?(\.\d+)?|-?\d").fullmatch
_LOOKED_AT = 50
TAGS = "image,tags"
"""First line of a label file that `ssr tag` wrote; the file is otherwise a plain one."""
RENAME = "the first line names the columns: image,labels, or image and one column of 0 and 1 for each class"


@dataclass(frozen=True)
class TableLayout:
    """The way to read a table.

    Attributes:
        delimiter: Delimiter of its columns.
        columns: Number of columns.
        image: Position of the column with the image.
        labels: Position of the column with class names; None: one column per class.
        classes: Positions and names of the columns of classes.
        several_rows: Whether an image may have several rows, with one label each.
        understood: Notes on what differs from ``image,labels``.
    """

    delimiter: str
    columns: int
    image: int
    labels: int | None
    classes: tuple[tuple[int, str], ...]
    several_rows: bool
    understood: tuple[str, ...]
    verified: int | None = None
    """Position of a column that says with 0 or 1 whether the class of a row is present."""

    def names(self, cells: Sequence[str], where: str) -> list[str]:
        """Return the class names of a row.

        Raises:
            UsageError: A column of a class holds a value that is neither 0 nor 1.
        """
        if self.verified is not None and cells[self.verified].strip().casefold() in _ABSENT - {""}:
            return []
        if self.labels is not None:
            return split_cell(cells[self.labels])
        names = []
        for place, name in self.classes:
            value = cells[place].strip().casefold()
            if value in _PRESENT:
                names.append(name)
            elif value not in _ABSENT:
                hint = "every cell of a class must be 0 or 1; remove columns of something else"
                raise UsageError(f"{where}: expected 0 or 1 in column {name!r:.60}, found {cells[place]!r:.40}", hint)
        return [name for name in names if not says_nothing(name)]


def table_rows(path: Path, file: TextIO) -> Iterator[Row]:
    """Read the rows of a table.

    Raises:
        UsageError: The file is no table, or a row does not match the first line.
    """
    before, header = preamble(file)
    if header.strip() not in {"image,labels", TAGS}:
        yield from _rows_of_layout(path, file, header, before)
        return
    lines = before + 1
    while block := file.read(_BLOCK) + file.readline():  # blocks of rows without a CSV parser are five times as fast
        block = block.replace("\r\n", "\n")
        if '"' in block or "\r" in block or "\0" in block:
            rest = itertools.chain(["image,labels\n"], io.StringIO(block, newline=""), file)
            yield from _parsed(path, rest, lines - 1, PLAIN)
            return
        for line in block.removesuffix("\n").split("\n"):
            lines += 1
            image, comma, names = line.partition(",")
            if comma and "," not in names and _PLAIN_ID(image):
                yield Row(image[:-4] if image.endswith(".jpg") else without_suffix(image), names, path, lines)
            elif line:
                yield from _parsed(path, ["image,labels", line], lines - 2, PLAIN)


def preamble(file: TextIO) -> tuple[int, str]:
    """Skip whatever precedes the first line of a table: empty lines, comments, Excel's ``sep=;``.

    Returns:
        The number of lines skipped, and the first line.
    """
    count, line = 0, file.readline()
    while line and (not line.strip() or line.startswith("#") or re.fullmatch(r"sep=.\s*", line)):
        count, line = count + 1, file.readline()
    return count, line


def _rows_of_layout(path: Path, file: TextIO, header: str, before: int) -> Iterator[Row]:
    start = file.read(_BLOCK)
    layout = layout_of(path, header + start)
    rows = _parsed(path, _lines(header + start, file), before, layout)
    if not layout.several_rows:
        yield from rows
        return
    merged: dict[str, Row] = {}
    for row in rows:
        key = row.image or row.image_id
        first = merged.get(key)
        merged[key] = row if first is None else first._replace(key=(*first.key, *row.key))
    yield from merged.values()


def _lines(start: str, file: TextIO) -> Iterator[str]:
    """Yield the lines of a file whose first characters, up to any place, were read already."""
    yield from io.StringIO(start + file.readline(), newline="")
    yield from file


def layout_of(path: Path, start: str) -> TableLayout:
    """Find out how to read a table, from its first lines.

    Raises:
        UsageError: The columns are unknown.
    """
    for delimiter in _DELIMITERS:
        rows = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter)
        try:
            head = list(itertools.islice(rows, _LOOKED_AT + 1))
        except csv.Error:
            continue
        header = head[0] if head else []
        layout = _layout(path, delimiter, header, [row for row in head[1:] if len(row) == len(header)])
        if layout is not None:
            return layout
    found = next(iter(start.splitlines()), "").strip()
    if not found:
        raise UsageError(f"{path}:1: expected columns image,labels, found an empty file", RENAME)
    if "\0" in found:
        raise UsageError(f"{path}:1: expected columns image,labels, found UTF-16 without its mark", "save the table as UTF-8")
    raise UsageError(f"{path}:1: expected columns image,labels, found {found!r:.60}", RENAME)


def _layout(path: Path, delimiter: str, header: list[str], rows: list[list[str]]) -> TableLayout | None:
    keys = [column_key(name) for name in header]
    image = next((keys.index(name) for name in IMAGE_NAMES if name in keys), None)
    if image is None or len(keys) < 2:
        return None
    numbers = {place for place, key in enumerate(keys) if not key or key.startswith("unnamed:") or key == "index"}  # of pandas
    columns = set(range(len(keys))) - {image, *numbers}
    binary = {place for place in columns if _is_binary({row[place] for row in rows})}
    named = [place for name in LABEL_NAMES for place, key in enumerate(keys) if key == name and place not in {image, *binary}]
    double = next((name for name in keys if name and keys.count(name) > 1), None)
    if double is not None:
        raise UsageError(f"{path}:1: expected each column once, found {double!r:.60} twice", RENAME)
    understood = [] if delimiter == "," else [f"columns are separated by {_DELIMITERS[delimiter]}"]
    labels, classes = None, tuple[tuple[int, str], ...]()
    if named:
        labels, others = named[0], set(range(len(keys))) - {image, named[0]}
        if (header[image].strip(), header[labels].strip()) != ("image", "labels"):
            understood.append(f"column {header[image].strip()!r:.40} is the image, {header[labels].strip()!r:.40} its classes")
    elif len(binary) == 1 and keys[min(binary)] in LABEL_NAMES:
        found = f"{header[min(binary)].strip()!r:.40} with 0 and 1"
        raise UsageError(f"{path}:1: expected a column of class names, found {found}", "write the names in place of numbers")
    elif binary:
        classes = tuple((place, clean_class_name(header[place])) for place in sorted(binary))
        others = set(range(len(keys))) - {image, *binary}
        understood.append(f"one column a class: {some([name for _, name in classes])}")
    else:
        return None
    several = labels is not None and (keys[labels] in ONE_LABEL or not _BOXES.isdisjoint(keys))
    if several:
        understood.append("an image may have several rows")
    others -= numbers
    verified = keys.index("confidence") if several and "confidence" in keys and keys.index("confidence") in binary else None
    if verified is not None:
        others -= {verified}
        understood.append(f"rows of {header[verified].strip()} 0 say that a class is not there")
    if others:
        understood.append(f"passed over: {some([header[place].strip() for place in sorted(others)])}")
    return TableLayout(delimiter, len(keys), image, labels, classes, several, tuple(understood), verified)


PLAIN = TableLayout(",", 2, 0, 1, (), False, ())
"""The plain form, ``image,labels``."""


def _is_binary(cells: set[str]) -> bool:
    """Return whether a column says for each image whether a class is present; an empty column does not.

    Columns with other small numbers beside 0 or 1 count too, so that they are refused and not ignored.
    """
    found = {cell.strip().casefold() for cell in cells} - {""}
    if found <= _PRESENT | _ABSENT:
        return bool(found)
    return bool(found & {"0", "1", "0.0", "1.0"}) and all(_SMALL(cell) for cell in found)


def _parsed(path: Path, lines: Iterable[str], before: int, layout: TableLayout) -> Iterator[Row]:
    rows = csv.reader(lines, delimiter=layout.delimiter, strict=True)
    try:
        next(rows, [])
        for row in rows:
            if row and (len(row) > 1 or row[0].strip()):
                yield _row(path, before + rows.line_num, layout, row)
    except csv.Error as error:
        raise UsageError(f"{path}:{before + rows.line_num}: broken CSV: {error}") from None


def _row(path: Path, place: int, layout: TableLayout, cells: list[str]) -> Row:
    if len(cells) != layout.columns:
        if layout.columns == 2:
            raise UsageError(
                f"{path}:{place}: expected image,labels with class names separated by ';', found {len(cells)} columns"
            )
        raise UsageError(f"{path}:{place}: expected {layout.columns} columns, found {len(cells)}")
    return row_of(path, place, cells[layout.image], layout.names(cells, f"{path}:{place}"))
