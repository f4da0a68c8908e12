"""Class lists with names, prompts and background words, and the palette of label maps."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines.datasets.class_names import (
    NO_BACKGROUND,
    NO_LABELS,
    clean_class_name,
    says_nothing,
    singular_keys,
    split_names,
)
from pipelines.datasets.splits import read_regular
from pipelines.errors import UsageError
from pipelines.options.sources import Options

DEFAULT_TEMPLATE = "a clean origami {}."
MAX_CLASSES = 254  # label maps are uint8: 0 is background, 255 is ignored


@dataclass(frozen=True)
class ClassList:
    """The classes of a dataset, without background.

    Args:
        names: Class names; the position in this tuple is the class index.
        prompts: Prompt of each class, which the text tower reads.
        background: Words that compete with the classes. A word that is a class's name, prompt or alias, or the plural of one,
            is left out, because it would take the pixels of the class.
        template: Sentence with one ``{}`` for the prompt or word.
        aliases: ``(alias, name)`` pairs that label files may use.
        supers: Name of each class's super-class, such as ``animal``; empty where none are named.

    Raises:
        UsageError: Names are empty, duplicate, reserved or too many, super-classes are named for some classes only, or the
            template is invalid.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    background: tuple[str, ...]
    template: str = DEFAULT_TEMPLATE
    aliases: tuple[tuple[str, str], ...] = ()
    supers: tuple[str, ...] = ()
    left_out: tuple[str, ...] = field(default=(), init=False, compare=False)
    """Background words that are left out because they are classes."""

    def __post_init__(self) -> None:
        """Check that label maps and label files can hold the classes."""
        known = [*self.names, *(alias for alias, _ in self.aliases)]
        double = sorted(name for name, count in Counter(known).items() if count > 1)
        if not 0 < len(self.names) <= MAX_CLASSES:
            raise UsageError(f"expected 1 to {MAX_CLASSES} classes, found {len(self.names)}")
        if len(self.prompts) != len(self.names):
            raise UsageError(f"expected one prompt a class, found {len(self.prompts)} for {len(self.names)} classes")
        if double:
            raise UsageError(f"class name {double[0]!r:.80} occurs twice")
        for name in known:
            if name == "background" or not name.isprintable() or ";" in name or name != name.strip() or not name:
                found = ": leave it out, label maps have it as 0" if name == "background" else ""
                raise UsageError(
                    f"{name!r:.80} cannot be a class name: expected printable text without ';', not 'background'{found}"
                )
        if not all(text.strip() for text in (*self.prompts, *self.background)):
            raise UsageError("a prompt or background word is empty")
        texts = (part for text in (*known, *self.prompts) for part in (text, *text.split(",")))
        taken = set[str]().union(*map(singular_keys, texts))
        left_out = tuple(word for word in self.background if not taken.isdisjoint(singular_keys(word)))
        if left_out:
            object.__setattr__(self, "left_out", left_out)
            object.__setattr__(self, "background", tuple(word for word in self.background if word not in left_out))
        if self.supers and (len(self.supers) != len(self.names) or not all(text.strip() for text in self.supers)):
            lacking = next((name for name, text in zip(self.names, self.supers, strict=False) if not text.strip()), "?")
            raise UsageError(f"class {lacking!r:.80} has no super-class, others have: expected `super` for all or for none")
        if self.template.count("{}") != 1 or set("{}") & set(self.template.replace("{}", "")):
            raise UsageError(f"expected a template with one {{}}, found {self.template!r:.80}")

    @property
    def notes(self) -> tuple[str, ...]:
        """Return notes on words that were changed."""
        words = f"background words that are classes are left out: {', '.join(self.left_out)}"
        return (words,) if self.left_out else ()

    @property
    def label_map_names(self) -> tuple[str, ...]:
        """Names by label-map value, background first."""
        return ("background", *self.names)

    def index(self, name: str) -> int:
        """Return the class index of a name or alias.

        Raises:
            UsageError: There is no such class; the message names the nearest one.
        """
        for spelling in (name, clean_class_name(name)):
            canonical = dict(self.aliases).get(spelling, spelling)
            if canonical in self.names:
                return self.names.index(canonical)
        by_case = {known.casefold(): known for known in (*self.names, *dict(self.aliases))}
        near = difflib.get_close_matches(name[:80].casefold(), by_case, n=1)
        guess = f"; did you mean {by_case[near[0]]!r}?" if near else ""
        hint = "--classes for other classes"
        if not guess and (name.casefold() == "background" or says_nothing(name)):
            hint = NO_BACKGROUND if name.casefold() == "background" else NO_LABELS
        raise UsageError(f"unknown class {name!r:.80}, expected one of {len(self.names)} classes{guess}", hint)

    def indices(self, names: Iterable[str], where: str) -> tuple[int, ...]:
        """Return the ascending class indices of names, each once; errors start with ``where``.

        An unknown name is split if that gives known names in one way only: ``apple,cup``, ``['apple', 'cup']``.
        """
        known = {*self.names, *dict(self.aliases)}
        try:
            found: set[int] = set()
            for name in names:
                parts = None if name in known else split_names(name, known)
                found.update(map(self.index, [name] if parts is None else parts))
            return tuple(sorted(found))
        except UsageError as error:
            raise UsageError(f"{where}: {error.message}", error.hint) from None


class _Entry(Options):
    name: str
    prompt: str | None = None
    aliases: tuple[str, ...] = ()
    super: str = ""


class _File(Options):
    template: str = DEFAULT_TEMPLATE
    background: tuple[str, ...] | None = None
    classes: tuple[_Entry, ...]


class _YamlLoader(yaml.SafeLoader):
    """A loader of plain YAML, without aliases, which can expand to more than memory holds, and without duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a class list has no place for aliases (*name)")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise yaml.YAMLError(f"a key occurs twice in one table: {keys!r:.80}")
        return super().construct_mapping(node, deep)


def load_class_list(path: Path) -> ClassList:
    """Read a class list.

    Args:
        path: ``.toml`` or ``.yaml``: ``template`` and ``background`` (both optional, default CLIP-ES's for VOC), and
            ``classes``, each with ``name`` and optionally ``prompt``, ``aliases`` and ``super``.

    Raises:
        UsageError: The file cannot be read, or it is no class list.
    """
    if path.suffix.lower() not in {".toml", ".yaml", ".yml"}:
        raise UsageError(f"{path}: expected a class list .toml or .yaml, found {path.suffix!r}", "--classes")
    try:
        content = _File.model_validate(_parsed(path))
        return ClassList(
            names=tuple(clean_class_name(entry.name) for entry in content.classes),
            prompts=tuple(entry.name if entry.prompt is None else entry.prompt for entry in content.classes),
            background=VOC12.background if content.background is None else content.background,
            template=content.template,
            aliases=tuple((alias, clean_class_name(entry.name)) for entry in content.classes for alias in entry.aliases),
            supers=tuple(entry.super for entry in content.classes) if any(entry.super for entry in content.classes) else (),
        )
    except ValidationError as error:
        raise UsageError(f"{path}: {_in_words(error)}", "--classes; docs/own-data.md has an example") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read the class list: {error.strerror}", "--classes") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", "--classes") from None


def write_class_list(path: Path, classes: ClassList) -> None:
    """Write a class list that `load_class_list` reads back.

    Raises:
        UsageError: The file is no ``.toml``, exists already, or cannot be written.
    """
    if path.suffix.lower() != ".toml":
        raise UsageError(f"{path}: expected a class list .toml, found {path.suffix!r}", "--write-classes FILE.toml")
    if path.exists():
        raise UsageError(f"{path}: there is a class list already", "remove it, or name another file")
    words = ", ".join(json.dumps(word, ensure_ascii=False) for word in classes.background)
    lines = [f"template = {json.dumps(classes.template)}", f"background = [{words}]"]
    for name, prompt in zip(classes.names, classes.prompts, strict=True):
        lines += ["", "[[classes]]", f"name = {json.dumps(name, ensure_ascii=False)}"]
        lines += [f"prompt = {json.dumps(prompt, ensure_ascii=False)}"] if prompt != name else []
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot write the class list: {error.strerror}") from None


_EXPECTED = {
    "classes": "a list `classes` with one table a class, each with a `name`",
    "background": "a list of words",
    "template": "a sentence with one {}",
    "name": "text; YAML needs quotes around yes, no, on, off and numbers",
    "prompt": "text",
    "aliases": "a list of names",
}


def _in_words(error: ValidationError) -> str:
    """Return the first fault of a class list: what was expected, what was found, where."""
    first = error.errors()[0]
    place, found = [str(part) for part in first["loc"]], first["input"]
    name = next((part for part in reversed(place) if not part.isdigit()), "")
    where = ".".join(place) or "the file"
    if first["type"] == "extra_forbidden":
        known = _Entry.model_fields if len(place) > 1 else _File.model_fields
        return f"{where:.80}: unknown key, expected {', '.join(known)}"
    if first["type"] == "missing":
        return f"{where:.80}: missing, expected {_EXPECTED.get(name, 'a value')}"
    if place[-1:] != [name] and name == "classes":
        return f"{where:.80}: expected a table with a `name`, such as {{name: mug}}, found {found!r:.60}"
    if not place:
        return f"expected {_EXPECTED['classes']}, found {found!r:.60}"
    return f"{where:.80}: expected {_EXPECTED.get(name, 'a value')}, found {found!r:.60}"


def _parsed(path: Path) -> object:
    text = read_regular(path)
    try:
        if path.suffix.lower() == ".toml":
            return tomllib.loads(text.decode("utf-8-sig").replace("\r\n", "\n"))
        return _YamlLoader(text.decode("utf-8-sig")).get_single_data()
    except Exception as error:  # PyYAML's constructors raise nearly any error on an odd scalar
        raise UsageError(f"not valid: {' '.join(str(error).split()):.300}") from None


def palette() -> NDArray[np.uint8]:
    """Return PASCAL VOC's palette, which is used for COCO as well.

    Returns:
        ``(256, 3)`` uint8, RGB; row 255 (ignored pixels) is ``(224, 224, 192)``.
    """
    colours = np.zeros((256, 3), np.uint8)
    for level in range(8):  # bits 0, 1, 2 of each base-8 digit go to red, green, blue, lowest digit to the highest bit
        bits = (np.arange(256)[:, None] >> (3 * level + np.arange(3))) & 1  # (256, 3)
        colours |= (bits << (7 - level)).astype(np.uint8)
    return colours


_LISTS = Path(__file__).parent / "class_lists"
VOC12 = load_class_list(_LISTS / "voc12.toml")
COCO14 = load_class_list(_LISTS / "coco14.toml")
