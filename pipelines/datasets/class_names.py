"""Names of classes: how they are cleaned, and which words taken from data are no class names."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Sequence

from pipelines.datasets.names import IMAGE_SUFFIXES
from pipelines.errors import UsageError

_AROUND = " \t\r\n\f\v\u00a0\ufeff\u200b\u200c\u200d\u2060"
_NOTHING = {
    "nan",
    "none",
    "null",
    "n/a",
    "na",
    "<na>",
    "nil",
    "-",
    "?",
    "no label",
    "no_label",
    "nolabel",
    "unlabeled",
    "unlabelled",
}
_SEPARATORS = re.compile(r"[,|;\t\n]|[\[\]{}]|^[\"'(]|[\"')]$")
_JOINS = (",", "|", ";", "\t", "/", "\\", "&", "+", ":", " and ", " ")
_LOOKALIKES = str.maketrans(  # Cyrillic and Greek letters that are drawn as Latin ones
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u0391\u0392\u0395\u0396\u0397"
    "\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u0410\u0412\u0415\u041a\u041c\u041d"
    "\u041e\u0420\u0421\u0422\u0425",
    "aeopcyxisjABEZHIKMNOPTYXABEKMHOPCTX",
)
NO_BACKGROUND = "leave it out: an image without a class has no labels, and every mask has background"
NO_LABELS = "leave the labels of an image without a class empty"
CLASS_FILE = "--classes FILE names the classes"


def clean_class_name(name: str) -> str:
    """Return a class name without outer space and invisible characters, with single inner spaces and composed accents (NFC)."""
    if name.isascii() and name.isalnum():
        return name
    return re.sub("[ \u00a0]+", " ", unicodedata.normalize("NFC", name).strip(_AROUND))


def says_nothing(name: str) -> bool:
    """Return whether a word means "no class": ``nan``, ``none``, ``n/a`` and the like."""
    return name.casefold() in _NOTHING


def split_names(cell: str, known: Collection[str]) -> list[str] | None:
    """Split a cell with several class names, as other tools write it; None unless exactly one reading gives only known names.

    Args:
        cell: ``apple,cup``, ``apple|cup``, ``apple cup``, ``['apple', 'cup']`` and the like.
        known: Class names and aliases.
    """
    listed = re.fullmatch(r"[\[({](.*)[\])}]", cell.strip(), re.DOTALL)
    inner = listed[1] if listed else cell
    readings: list[list[str]] = []
    for separator in _JOINS:
        parts = [clean_class_name(part).strip("\"'") for part in inner.split(separator)]
        parts = [part for part in parts if part]
        if (len(parts) > 1 or listed) and all(part in known for part in parts) and parts not in readings:
            readings.append(parts)
    return readings[0] if len(readings) == 1 else None


def names_in_list(cell: str) -> list[str] | None:
    """Return the names in a list that was written as text (``["apple", "cup"]``); None if it is no such list."""
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None


def refuse_odd_names(names: Sequence[str], where: object) -> None:
    """Refuse class names from data that do not name different classes.

    Args:
        names: All names.
        where: File, for the error message.

    Raises:
        UsageError: A name contains several names, means no class, or can be confused with another one.
    """
    known = set(names)
    for name in names:
        if name.casefold() == "background":
            raise UsageError(f"{where}: {name!r} is what no class covers, and is no class name", NO_BACKGROUND)
        if name.lower().endswith(IMAGE_SUFFIXES):
            hint = "a label file names the classes of each image, not the images of each class"
            raise UsageError(f"{where}: {name!r:.80} is the name of an image, and no class name", f"{hint}; or {CLASS_FILE}")
        if says_nothing(name):
            raise UsageError(f"{where}: {name!r} stands for no class, and is no class name", f"{NO_LABELS}; or {CLASS_FILE}")
        parts = next((parts for mark in _JOINS if len(parts := _parts(name, mark)) > 1 and known >= set(parts)), None)
        if parts is not None or _SEPARATORS.search(name):
            found = f"several class names in one: {', '.join(map(repr, parts))}" if parts else "separators or brackets"
            hint = f"write ';' between the class names of an image; or {CLASS_FILE}"
            raise UsageError(f"{where}: class name {name!r:.80} holds {found}", hint)
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(class_key(name), name)
        if other != name:
            hint = f"write one of them everywhere; or {CLASS_FILE}, with aliases"
            raise UsageError(f"{where}: class names {other!r:.80} and {name!r:.80} can be taken for one", hint)


def class_key(name: str) -> str:
    """Return a key that equal class names share: case, accents, look-alike letters, spaces, ``-`` and ``_`` do not count."""
    letters = unicodedata.normalize("NFKD", name.translate(_LOOKALIKES))
    plain = "".join(char for char in letters if not unicodedata.combining(char) and char not in " -_'")
    return plain.casefold() or name


def singular_keys(name: str) -> set[str]:
    """Return the key of a name, and its keys without the ending of an English plural."""
    key = class_key(name)
    endings = [ending for ending in ("s", "es") if key.endswith(ending) and not key.endswith("ss") and len(key) > 3]
    return {key, *(key.removesuffix(ending) for ending in endings)}


def _parts(name: str, separator: str) -> list[str]:
    return [part for part in map(clean_class_name, name.split(separator)) if part]
