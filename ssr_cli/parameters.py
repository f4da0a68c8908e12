"""Typer parameters made from the option classes: flag, help and default come from the field.

A flag that is not given stays None, so that config file, work directory and recipe apply (see `pipelines.config`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from pipelines.config import SECTIONS, Values, choices_of, flag_of, read_recipe, recipes
from pipelines.errors import UsageError
from ssr_cli.console import reports_errors
from ssr_cli.invocation import DEFAULT_RECIPE, Invocation

PANELS = {
    "dataset": "Dataset",
    "clip": "CLIP",
    "dino": "DINO",
    "run": "Running",
    "scale": "Several devices and machines",
}


def command_with(*sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add to a command the flags of some sections, and ``--config --work --recipe --force --debug``.

    Args:
        sections: Keys of `pipelines.config.SECTIONS`, that of the command first.

    Returns:
        A decorator. The command receives an `Invocation` as its first argument, and then its further parameters.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        generated = [_parameter(section, key, field) for section, key, field in _fields(sections)]
        shared = _shared_parameters()
        names = {parameter.name for parameter in parameters}

        @functools.wraps(function)
        def wrapper(**arguments: Any) -> None:
            with reports_errors(debug=arguments["debug"]):
                flags: Values = {section: {} for section in sections}
                for section, key, field in _fields(sections):
                    value = arguments[_name(section, key)]
                    if value is not None and value != []:
                        is_table = get_origin(field.annotation) is dict
                        flags[section][key] = _table(value, flag_of(section, key)) if is_table else value
                config, work, recipe, force = (arguments[name] for name in ("config", "work", "recipe", "force"))
                invocation = Invocation(sections, flags, config, work, recipe, bool(force))
                function(invocation, **{name: arguments[name] for name in names})

        signature = inspect.Signature([*parameters, *generated, *shared])
        wrapper.__signature__ = signature  # type: ignore[attr-defined]
        wrapper.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return wrapper

    return decorate


def _fields(sections: tuple[str, ...]) -> list[tuple[str, str, FieldInfo]]:
    """The options behind a command's flags; of two with one flag, that of the earlier section (the command's own)."""
    fields = [(section, key, field) for section in sections for key, field in SECTIONS[section].model_fields.items()]
    by_flag = {flag_of(section, key): (section, key, field) for section, key, field in reversed(fields)}
    return [field for field in fields if by_flag[flag_of(*field[:2])] == field]


def _name(section: str, key: str) -> str:
    return f"{section}_{key}"


def _parameter(section: str, key: str, field: FieldInfo) -> inspect.Parameter:
    flag = flag_of(section, key)
    panel = PANELS.get(section, "Options")
    annotation = _plain(field.annotation)
    named: dict[str, Any] = {}
    if choices := list(choices_of(section, key)):
        named = {"metavar": f"[{'|'.join(choices)}]", "autocompletion": lambda: choices}
    if not flag.startswith("--"):
        kind: Any = typer.Argument(help=escape(field.description or ""), **named)
    else:
        names = [f"{flag}/--no-{flag[2:]}"] if annotation is bool else [flag]
        if get_origin(field.annotation) is dict:
            named = {"metavar": "NAME=WEIGHT"}
        text = escape(f"{field.description} {_shown_default(section, key, field)}".rstrip())
        kind = typer.Option(*names, help=text, show_default=False, rich_help_panel=panel, **named)
    return inspect.Parameter(
        _name(section, key), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, kind]
    )


def _plain(annotation: Any) -> Any:
    """``X | None`` -> X, ``tuple[float, ...]`` -> ``list[float]``, a table -> ``list[str]`` (flags given several times)."""
    if get_origin(annotation) is dict:
        return list[str]
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is tuple:
        item: Any = get_args(arguments[0])[0] if get_origin(arguments[0]) is Annotated else arguments[0]
        return list[item]
    if len(arguments) == 1 and type(None) in get_args(annotation):
        return arguments[0]
    return annotation


def _table(entries: list[str], flag: str) -> dict[str, str]:
    """``NAME=WEIGHT`` of each time that a flag is given -> name: weight.

    Raises:
        UsageError: One without a name, or without the sign between.
    """
    parts = [entry.partition("=") for entry in entries]
    for entry, (name, sign, _) in zip(entries, parts, strict=True):
        if not name or not sign:
            raise UsageError(f"{flag}: expected NAME=WEIGHT, found {entry!r:.80}", flag)
    return {name: weight for name, _, weight in parts}


def _shown_default(section: str, key: str, field: FieldInfo) -> str:
    """``[default: 4]``, or ``[default: 4; recipe ssr]`` where the default recipe sets the value; empty for None."""
    values = _default_recipe().get(section, {})
    value = values.get(key, field.get_default(call_default_factory=True))
    if value is None or value == "" or value == {}:
        return ""
    if isinstance(value, bool):
        shown = "on" if value else "off"
    else:
        shown = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return f"[default: {shown}; recipe {DEFAULT_RECIPE}]" if key in values else f"[default: {shown}]"


@functools.cache
def _default_recipe() -> Values:
    return read_recipe(DEFAULT_RECIPE)


def _shared_parameters() -> list[inspect.Parameter]:
    def option(
        name: str, annotation: Any, text: str, default: Any = None, choices: Callable[[], list[str]] | None = None
    ) -> inspect.Parameter:
        flag = typer.Option(f"--{name}", help=text, rich_help_panel="Running", show_default=False, autocompletion=choices)
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, flag])

    return [
        option("config", Path | None, "config file (.toml); a flag overrides it"),
        option("work", Path | None, "work directory \\[default: runs/DATASET]"),
        option("recipe", str | None, f"named options: {', '.join(recipes())} \\[default: {DEFAULT_RECIPE}]", choices=recipes),
        option("force", bool, "start this stage over (refine: only the masks, if the refined CAMs are still valid)", False),
        option("debug", bool, "show the traceback of an error", False),
    ]
