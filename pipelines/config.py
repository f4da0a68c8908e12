"""Options from flags, config file, work directory, recipe and defaults; an earlier source overrides a later one."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from pipelines.errors import UsageError
from pipelines.options.align import AlignOptions
from pipelines.options.export import ExportOptions, ImportOptions
from pipelines.options.onnx import OnnxOptions
from pipelines.options.retrain import RetrainOptions
from pipelines.options.scale import ScaleOptions
from pipelines.options.sources import ClipOptions, DatasetOptions, DinoOptions, Options, RunOptions
from pipelines.options.stages import (
    CamsOptions,
    EvalOptions,
    RefineOptions,
    SampleOptions,
    ShowOptions,
    SuperpixelsOptions,
)
from pipelines.options.tag import TagOptions
from pipelines.options.train import PredictOptions, TrainOptions

SECTIONS: dict[str, type[Options]] = {
    "dataset": DatasetOptions,
    "clip": ClipOptions,
    "dino": DinoOptions,
    "run": RunOptions,
    "scale": ScaleOptions,
    "sample": SampleOptions,
    "superpixels": SuperpixelsOptions,
    "tag": TagOptions,
    "align": AlignOptions,
    "cams": CamsOptions,
    "refine": RefineOptions,
    "train": TrainOptions,
    "retrain": RetrainOptions,
    "predict": PredictOptions,
    "eval": EvalOptions,
    "show": ShowOptions,
    "export": ExportOptions,
    "import": ImportOptions,
    "onnx": OnnxOptions,
}
"""Every section of a config file and the options it holds."""

Values = dict[str, dict[str, Any]]
"""Section -> key -> value: one layer of configuration."""


def flag_of(section: str, key: str) -> str:
    """Return the command-line flag of an option, such as ``--clip-model``."""
    return str(_extra(section, key).get("flag") or "--" + key.replace("_", "-"))


def choices_of(section: str, key: str) -> tuple[str, ...]:
    """Return the names that the package ships for an option that names a part; empty for any other option."""
    return tuple(map(str, _extra(section, key).get("choices", ())))


def _extra(section: str, key: str) -> dict[str, Any]:
    extra = SECTIONS[section].model_fields[key].json_schema_extra
    return extra if isinstance(extra, dict) else {}


FILE_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".jit", ".txt", ".json", ".py"}
"""Suffixes by which a model, its weights or a split is a file and not a name."""


def recipes() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(
        p.name.removesuffix(".toml") for p in resources.files("pipelines.recipes").iterdir() if p.name.endswith(".toml")
    )


def read_recipe(name: str) -> Values:
    """Return the options that a recipe sets.

    Raises:
        UsageError: No such recipe.
    """
    if name not in recipes():
        raise UsageError(f"no recipe {name!r:.80}: expected one of {', '.join(recipes())}", "--recipe")
    text = (resources.files("pipelines.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    return _checked_keys(tomllib.loads(text), f"recipe {name}")


def read_config(path: Path) -> tuple[Values, dict[str, Any]]:
    """Read a config file; relative paths in it are relative to its folder.

    Returns:
        The options by section, and the top-level keys (``work``, ``recipe``).

    Raises:
        UsageError: The file is missing or no valid TOML, or a section or key is unknown.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        _check_values(content)
    except OSError as error:
        raise UsageError(f"cannot read config {path}: {error.strerror}", "--config") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or a number with thousands of digits
        raise UsageError(f"{path} is not valid TOML: {error!s:.300}", "--config") from error
    top: dict[str, Any] = {key: content.pop(key) for key in ("work", "recipe") if key in content}
    for key, value in top.items():
        if not isinstance(value, str) or not value:
            raise UsageError(f"{path}: expected text as `{key}`, found {value!r:.80}", "--config")
    if "work" in top:
        top["work"] = path.parent / _expanded(top["work"])
    values = _checked_keys(content, str(path))
    for section, entries in values.items():
        for key, value in entries.items():
            if isinstance(value, str) and _is_path(section, key, value):
                entries[key] = path.parent / _expanded(value)
    return values, top


def _expanded(value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise UsageError(f"{value!r:.80}: there is no such user's home", "--config") from None


def _check_values(value: Any) -> None:
    """Refuse a value that no option can have and no work directory could store."""
    if isinstance(value, Mapping):
        for entry in value.values():
            _check_values(entry)
    elif isinstance(value, list):
        for entry in value:
            _check_values(entry)
    elif not isinstance(value, str | int | float):
        raise ValueError(f"found the date or time {value}, which no option takes")
    elif isinstance(value, str) and "\0" in value:
        raise ValueError(f"found a null character in {value!r:.60}")


def _is_path(section: str, key: str, value: str) -> bool:
    annotation = SECTIONS[section].model_fields[key].annotation
    if annotation is Path or Path in get_args(annotation):
        return True
    names_file = section in {"clip", "dino"} or (section, key) == ("dataset", "split")
    return names_file and Path(value).suffix in FILE_SUFFIXES


def _checked_keys(content: Mapping[str, Any], where: str) -> Values:
    for section, entries in content.items():
        if section not in SECTIONS:
            shown = section if section.isprintable() else repr(section)
            raise UsageError(f"{where}: unknown section [{shown:.60}]{_did_you_mean(section, SECTIONS)}", "--config")
        if not isinstance(entries, dict):
            raise UsageError(f"{where}: [{section}] must be a table, found {entries!r:.80}", "--config")
        known = SECTIONS[section].model_fields
        for key in entries:
            if key not in known:
                raise UsageError(f"{where}: unknown key {key!r:.80} in [{section}]{_did_you_mean(key, known)}", "--config")
    return {section: dict(entries) for section, entries in content.items()}


def _did_you_mean(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word[:80], known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"


def build_options(section: str, *layers: Mapping[str, Any]) -> Options:
    """Build the options of one section from layers; a later layer overrides an earlier one.

    Raises:
        UsageError: A value of the wrong type or out of range; the message names the flag.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if not isinstance(layer, Mapping):
            raise UsageError(f"[{section}]: expected a mapping of options, found {layer!r:.80}", section)
        merged.update(layer)
    for key, value in merged.items():
        known = SECTIONS[section].model_fields.get(key)
        if isinstance(value, bool) and known is not None and known.annotation in (int, float):  # pydantic takes true for 1
            flag = flag_of(section, key)
            raise UsageError(f"{flag}: expected a number, found {str(value).lower()}", f"{flag}, or {key} in [{section}]")
    try:
        return SECTIONS[section].model_validate({k: str(v) if _wants_str(section, k, v) else v for k, v in merged.items()})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        known_keys = SECTIONS[section].model_fields
        if first["type"] == "extra_forbidden":
            raise UsageError(f"unknown key {key!r:.80} in [{section}]{_did_you_mean(key, known_keys)}", section) from error
        flag = flag_of(section, key) if key in known_keys else f"[{section}]"
        raise UsageError(
            f"{flag}: {first['msg'].lower()}, found {first['input']!r:.80}", f"{flag}, or {key} in [{section}]"
        ) from error


def _wants_str(section: str, key: str, value: Any) -> bool:
    field = SECTIONS[section].model_fields.get(key)
    return isinstance(value, Path) and field is not None and field.annotation is str
