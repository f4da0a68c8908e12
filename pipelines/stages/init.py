"""`ssr init`: examines a folder of images, and writes the config that every other command reads."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from pipelines.config import FILE_SUFFIXES, SECTIONS, Values, build_options, read_config, read_recipe, recipes
from pipelines.datasets import VOC12, ClassList, Dataset, kind_of, layout_of, load_class_list, load_dataset, split_in
from pipelines.datasets.classes import write_class_list
from pipelines.datasets.folder import label_file_of, photos_of
from pipelines.datasets.image_files import ImageFiles, unread_in, unread_line
from pipelines.datasets.unlabelled import lacks_labels, load_unlabelled
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions
from pipelines.stores.files import atomic_path

CONFIG = Path("ssr.toml")
CLASS_LISTS = ("classes.toml", "classes.yaml", "classes.yml")
SHOWN = {
    "dataset": ("kind", "root", "split", "labels", "classes", "absent_is_empty", "orient", "long_side"),
    "clip": ("model", "pretrained"),
    "dino": ("model", "pretrained"),
    "run": ("device", "precision", "max_failures"),
    "refine": ("boundary", "min_confidence"),
}
"""Options that the file always contains, as comments where they are not set."""


@dataclass(frozen=True)
class Plan:
    """What was found, and what will be written.

    Attributes:
        values: Options by section, both those given and those found.
        dataset: The images, with their labels if there are any.
        labelled: Whether there are labels.
        new_classes: Class list to write beside the config; None if there is one already, or if the labels name the classes.
    """

    values: Values
    dataset: Dataset
    labelled: bool
    new_classes: ClassList | None


def located(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``[dataset]``; layout, split and class list are found where they are not given.

    Args:
        given: At least ``root``.

    Raises:
        UsageError: The root is no folder, or the layout is unknown.
    """
    root = Path(given["root"])
    if not root.is_dir():
        raise UsageError(f"expected a folder of images, found {root}", "--root FOLDER")
    kind = given.get("kind") or layout_of(root)
    split = given.get("split") or split_in(root, kind_of(DatasetOptions(kind=kind)))
    classes = next((root / name for name in CLASS_LISTS if (root / name).is_file()), None)
    return {"kind": kind, "root": root, "split": split, **({"classes": classes} if classes else {}), **given}


def lacking(dataset: Mapping[str, Any]) -> UsageError | None:
    """Return the error for images that have neither labels nor class names; None if they have either."""
    if dataset["kind"] != "folder" or "labels" in dataset or "classes" in dataset:
        return None
    try:
        label_file_of(dataset["root"])
    except UsageError as error:
        return UsageError(error.message, f"{error.hint}, or the class names: --names 'mug, spoon'")
    return None


def plan(values: Values, names: tuple[str, ...] = ()) -> Plan:
    """List the images with the options that the config will have; no image and no mask is opened.

    Args:
        values: Options by section; ``dataset`` as `located` returns it.
        names: Class names, in place of a class list.

    Raises:
        UsageError: A run would refuse the options: there are no images, or labels or names cannot be read.
    """
    given = values["dataset"]
    for section, entries in values.items():
        build_options(section, entries)
    new = ClassList(names, names, VOC12.background) if names else None
    if new is not None and "classes" in given:
        _refuse_other_names(given["classes"], new)
        new = None
    if given["kind"] == "folder":
        _check_photos(photos_of(given["root"]))
    with TemporaryDirectory() as folder:
        more: dict[str, Any] = {}
        if new is not None:
            write_class_list(Path(folder) / "classes.toml", new)
            more = {"classes": Path(folder) / "classes.toml"}
        options = cast("DatasetOptions", build_options("dataset", given, more))
        labelled = not lacks_labels(options)
        dataset = load_dataset(options) if labelled else load_unlabelled(options)
    return Plan(values, dataset, labelled, new)


def write(made: Plan, target: Path, work: Path | None, recipe: str | None, force: bool) -> tuple[Path, ...]:
    """Write the config, and the class list beside it if there is a new one.

    Args:
        made: The plan to write.
        target: Path of the config.
        work: Work directory in the config; None: ``runs/`` and the name of the images' folder.
        recipe: Recipe in the config; None: the default.
        force: Whether a config is replaced. A class list is never replaced.

    Returns:
        The files that were written.

    Raises:
        UsageError: There is a config or another class list already, or the text cannot be a config.
        SsrError: A file cannot be written.
    """
    refuse_existing(target, force)
    if recipe is not None:
        read_recipe(recipe)
    values, written = {**made.values}, [target]
    if made.new_classes is not None:
        classes = target.parent / "classes.toml"
        values["dataset"] = {**values["dataset"], "classes": classes}
        if not classes.exists():
            classes.parent.mkdir(parents=True, exist_ok=True)
            write_class_list(classes, made.new_classes)
            written.insert(0, classes)
        else:
            _refuse_other_names(classes, made.new_classes)
    root = Path(values["dataset"]["root"])
    work = work or target.parent / "runs" / (root.resolve().name or values["dataset"]["kind"])
    text = "\n".join(_lines(values, target.parent, work, recipe)) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{str(root)!r}: a config cannot hold a path that is not UTF-8", "rename the folder") from None
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
        read_config(temporary)
    return tuple(written)


def refuse_existing(target: Path, force: bool) -> None:
    """Refuse a target that exists, unless it may be replaced.

    Raises:
        UsageError: The file exists and ``force`` is off, or it is no ``.toml``.
    """
    if target.suffix.lower() != ".toml":
        raise UsageError(f"--output: expected a .toml, found {target}", "--output FILE.toml")
    if os.path.lexists(target) and not force:
        raise UsageError(f"{target}: there is a config already", "--force replaces it, --output FILE.toml writes another")


def _refuse_other_names(path: Path, classes: ClassList) -> None:
    there = load_class_list(path).names
    if there != classes.names:
        found = f"{path}: expected the classes of --names, found a class list with {', '.join(there):.80}"
        raise UsageError(found, f"without --names, --classes {shlex.quote(str(path))} takes it; or remove it")


def _check_photos(folder: Path) -> None:
    if not len(ImageFiles(folder)):
        other = unread_in(folder)
        raise UsageError(f"{folder}: expected images, found {unread_line(other) if other else 'none'}", "--root FOLDER")


def _lines(values: Values, folder: Path, work: Path, recipe: str | None) -> Iterator[str]:
    """Yield the lines of the file: the values that are set, and the others as comments."""
    set_by = read_recipe(recipe or "ssr")
    yield "# Written by `ssr init`. Any command reads it with --config; a flag of the command overrides it."
    yield "# Paths are relative to this file. `#key = value` shows a default: remove the # to change it."
    yield f"work = {_toml(work, folder)}  # outputs of all stages"
    yield f"{'' if recipe else '#'}recipe = {_toml(recipe or 'ssr', folder)}  # named options: {', '.join(recipes())}"
    for section in dict.fromkeys((*SHOWN, *values)):
        given = values.get(section, {})
        yield f"\n[{section}]"
        for key in dict.fromkeys((*SHOWN.get(section, ()), *given)):
            field = SECTIONS[section].model_fields[key]
            default = set_by.get(section, {}).get(key, field.get_default())
            if key in given or default is not None:
                yield f"# {field.description}"
                yield f"{'' if key in given else '#'}{key} = {_toml(given.get(key, default), folder)}"


def _toml(value: Any, folder: Path) -> str:
    """Return a value as TOML; a path in the folder of the file is relative to it, any other is absolute."""
    if isinstance(value, Path) or (isinstance(value, str) and Path(value).suffix in FILE_SUFFIXES):
        value = Path(os.path.abspath(value))
        inside = Path(os.path.abspath(folder))
        relative = str(value.relative_to(inside)) if value.is_relative_to(inside) else "~"
        value = str(value) if relative.startswith("~") else relative
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
