"""Typer parameters made from the option classes: flag and help come from the field.

A flag that is not given stays None, so that config file, work directory and recipe apply (see `pipelines.config`).
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from pipelines.config import SECTIONS, Values, choices_of, flag_of, read_recipe, recipes
from pipelines.errors import UsageError
from ssr_cli.console import reports_errors
from ssr_cli.help import value_name
from ssr_cli.invocation import DEFAULT_RECIPE, Invocation
from ssr_cli.panels import SHARED, panel_of, rank_of


def command_with(*sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add to a command the flags of some sections, and ``--config --work --recipe --force --debug``.

    Args:
        sections: Keys of `pipelines.config.SECTIONS`, that of the command first.

    Returns:
        A decorator. The command receives an `Invocation` as its first argument, and then its further parameters.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        ranked = sorted(_fields(sections), key=lambda field: (sections.index(field[0]), rank_of(field[0], field[1])))
        generated = [_parameter(section, key, field) for section, key, field in ranked]
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

        signature = inspect.Signature([*parameters, *shared, *generated])
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
    annotation = _plain(field.annotation)
    named: dict[str, Any] = {"metavar": value_name(field.annotation), "help": escape(field.description or "")}
    if choices := list(choices_of(section, key)):
        named["autocompletion"] = lambda: choices
    if not flag.startswith("--"):
        kind: Any = typer.Argument(**named | {"metavar": flag})
    else:
        names = [f"{flag}/--no-{flag[2:]}"] if annotation is bool else [flag]
        kind = typer.Option(*names, show_default=False, rich_help_panel=panel_of(section, key), **named)
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


def option_of(name: str) -> tuple[str, str] | None:
    """Section and key of a generated parameter; None for a command's own."""
    section, _, key = name.partition("_")
    return (section, key) if section in SECTIONS and key in SECTIONS[section].model_fields else None


def shown_default(section: str, key: str, recipe: str | None = None) -> str:
    """The choices that the description does not name, and the default: ``default: 4``, or ``ssr: 4`` if the recipe sets it.

    Args:
        section: Section of the option.
        key: Its name in that section.
        recipe: Recipe, or None for the default one.
    """
    name = recipe or DEFAULT_RECIPE
    field, values = SECTIONS[section].model_fields[key], _recipe(name).get(section, {})
    choices = choices_of(section, key) or tuple(map(str, get_args(field.annotation) if _is_literal(field) else ()))
    words = set(re.findall(r"[\w-]+", field.description or ""))
    listed = "" if words.issuperset(choices) else "|".join(choices)
    value = values.get(key, field.get_default(call_default_factory=True))
    if value is None or value == "" or value == {}:
        return listed
    if isinstance(value, bool):
        shown = "on" if value else "off"
    else:
        shown = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return "; ".join(filter(None, (listed, f"{name if key in values else 'default'}: {shown}")))


def _is_literal(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal


_recipe = functools.cache(read_recipe)


def _shared_parameters() -> list[inspect.Parameter]:
    def option(
        name: str, annotation: Any, text: str, default: Any = None, choices: Callable[[], list[str]] | None = None
    ) -> inspect.Parameter:
        metavar = {Path: "PATH", str: "NAME"}.get(get_args(annotation)[0] if get_args(annotation) else annotation)
        flag = typer.Option(
            f"--{name}", help=text, rich_help_panel=SHARED["run"], show_default=False, autocompletion=choices, metavar=metavar
        )
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, flag])

    return [
        option("config", Path | None, "Config file (.toml); a flag overrides it."),
        option("work", Path | None, "Work directory; without it, the config's or runs/DATASET."),
        option(
            "recipe",
            str | None,
            f"Named set of options: {', '.join(recipes())}; without it, the config's or {DEFAULT_RECIPE}.",
            choices=recipes,
        ),
        option(
            "force",
            bool,
            "Start this stage over; refine makes only the masks again if its refined CAMs are still valid.",
            False,
        ),
        option("debug", bool, "Show the traceback of an error.", False),
    ]
