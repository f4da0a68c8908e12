"""Typer parameters made from option classes: the flag, its help and its default come from the one field.

A flag that is not given stays None, so that config file, work directory and recipe can speak (see `pipelines.config`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from pipelines.config import SECTIONS, Values, choices_of, flag_of, recipes
from ssr_cli.console import reports_errors
from ssr_cli.invocation import Invocation

PANELS = {
    "dataset": "Dataset",
    "clip": "CLIP",
    "dino": "DINO",
    "run": "Running",
    "scale": "Several devices and machines",
}


def command_with(*sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of some sections, and ``--config --work --recipe --force --debug``.

    Args:
        sections: Sections of `pipelines.config.SECTIONS`; the command's own one first.

    Returns:
        A decorator. The command keeps its own parameters and receives an `Invocation` as its first argument.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        generated = [_parameter(section, key, field) for section, key, field in _fields(sections)]
        shared = _shared_parameters()
        names = {parameter.name for parameter in own}

        @functools.wraps(function)
        def wrapper(**given: Any) -> None:
            with reports_errors(debug=given["debug"]):
                flags: Values = {section: {} for section in sections}
                for section, key, _ in _fields(sections):
                    value = given[_name(section, key)]
                    if value is not None and value != []:
                        flags[section][key] = value
                invocation = Invocation(sections, flags, given["config"], given["work"], given["recipe"], bool(given["force"]))
                function(invocation, **{name: given[name] for name in names})

        signature = inspect.Signature([*own, *generated, *shared])
        wrapper.__signature__ = signature  # type: ignore[attr-defined]
        wrapper.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return wrapper

    return decorate


def _fields(sections: tuple[str, ...]) -> list[tuple[str, str, FieldInfo]]:
    return [(section, key, field) for section in sections for key, field in SECTIONS[section].model_fields.items()]


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
        kind: Any = typer.Argument(help=field.description, **named)
    else:
        names = [f"{flag}/--no-{flag[2:]}"] if annotation is bool else [flag]
        kind = typer.Option(*names, help=field.description, show_default=_shown(field.default), rich_help_panel=panel, **named)
    return inspect.Parameter(
        _name(section, key), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, kind]
    )


def _plain(annotation: Any) -> Any:
    """``X | None`` -> X, ``tuple[float, ...]`` -> ``list[float]`` (a flag given several times)."""
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is tuple:
        item: Any = get_args(arguments[0])[0] if get_origin(arguments[0]) is Annotated else arguments[0]
        return list[item]
    if len(arguments) == 1 and type(None) in get_args(annotation):
        return arguments[0]
    return annotation


def _shown(default: Any) -> bool | str:
    if default is None or default == "":
        return False
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _shared_parameters() -> list[inspect.Parameter]:
    def option(
        name: str, annotation: Any, text: str, default: Any = None, known: Callable[[], list[str]] | None = None
    ) -> inspect.Parameter:
        flag = typer.Option(f"--{name}", help=text, rich_help_panel="Running", show_default=False, autocompletion=known)
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, flag])

    return [
        option("config", Path | None, "config file (.toml); flags win over it"),
        option("work", Path | None, "work directory; default: runs/DATASET"),
        option("recipe", str | None, f"named set of options: {', '.join(recipes())} (default: ssr)", known=recipes),
        option("force", bool, "start this stage over (refine: only the masks, if nothing before them changed)", False),
        option("debug", bool, "show the traceback of an error", False),
    ]
