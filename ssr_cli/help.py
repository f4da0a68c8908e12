"""``--help``: groups of options, the most used first, each flag beside one sentence, on a terminal of any width.

The text is wrapped here because Typer's own help cuts long flags short on 80 columns, and takes longer than all else.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, get_args, get_origin

import typer
from typer.core import TyperCommand

from ssr_cli.panels import ARGUMENTS, FIRST, FOUND_IN_THE_FOLDER, ORDER, SHARED

WIDEST = 120
"""Longer lines are hard to read, however wide the terminal is."""

INDENT, GAP, WIDEST_LEFT = 2, 2, 29

UNBROKEN = "\xa0"

WRAPPING: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}

Entry = tuple[str, str, str]
"""Flag or command, its sentence, and what stands in brackets after it."""


class SsrCommand(TyperCommand):
    """A subcommand with the help of this module; ``--recipe NAME --help`` shows the defaults of that recipe."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note the recipe of the command line for the help, which is printed before any flag is read."""
        recipe = [after for flag, after in pairwise(args) if flag == "--recipe"]
        recipe += [word.partition("=")[2] for word in args if word.startswith("--recipe=")]
        ctx.meta["ssr.recipe"] = recipe[0] if recipe else None
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, purpose and every option."""
        from ssr_cli.console import reports_errors
        from ssr_cli.parameters import option_of, shown_default

        with reports_errors(debug=False):
            panels: dict[str, list[Entry]] = {title: [] for title in ORDER}
            for parameter in self.get_params(ctx):
                title = ARGUMENTS if parameter.param_type_name == "argument" else _panel(parameter)
                option = option_of(parameter.name)
                if option in FOUND_IN_THE_FOLDER.get(self.name or "", ()):
                    bracket = "default: found in the folder"
                else:
                    bracket = shown_default(*option, ctx.meta["ssr.recipe"]) if option else _own_default(parameter.default)
                panels[title].append(entry_of(parameter, bracket))
            print_help(self.get_usage(ctx), self.help or "", panels)


def print_help(usage: str, purpose: str, panels: dict[str, list[Entry]]) -> None:
    """Print the help of a command.

    Args:
        usage: Usage line.
        purpose: Paragraphs that say what the command does.
        panels: Title -> entries; titles without any entry are left out.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST)
    paragraphs = [" ".join(paragraph.split()) for paragraph in purpose.split("\n\n")]
    lines = [textwrap.fill(usage, width, subsequent_indent=" " * 7)]
    lines += [line for paragraph in paragraphs for line in ("", textwrap.fill(paragraph, width, **WRAPPING))]
    widths = [len(left) for entries in panels.values() for left, _, _ in entries if len(left) <= WIDEST_LEFT]
    column = INDENT + max(widths, default=0) + GAP
    for title, entries in panels.items():
        if entries:
            lines += ["", typer.style(title, bold=True), *(line for entry in entries for line in _lines(entry, column, width))]
    typer.echo("\n".join(lines))


def _lines(entry: Entry, column: int, width: int) -> Iterable[str]:
    left, text, bracket = entry
    words = f"{text} [{_unbroken(bracket)}]" if bracket else text
    wrapped = [line.replace(UNBROKEN, " ") for line in textwrap.wrap(words, width - column, **WRAPPING)]
    shown = " " * INDENT + typer.style(left, fg="cyan", bold=True)
    room = column - INDENT - len(left)
    if room < GAP:
        yield shown
    else:
        yield shown + " " * room + wrapped.pop(0)
    yield from (" " * column + line for line in wrapped)


def _unbroken(bracket: str) -> str:
    """The bracket with a line break at most after a semicolon."""
    return bracket.replace(" ", UNBROKEN).replace(f";{UNBROKEN}", "; ")


def _panel(parameter: Any) -> str:
    return SHARED["run"] if "--help" in parameter.opts else parameter.rich_help_panel or FIRST


def entry_of(parameter: Any, bracket: str = "") -> Entry:
    """One argument or option: how it is written, its sentence, and what stands in brackets."""
    text = "Show this help and exit." if "--help" in parameter.opts else (parameter.help or "").replace("\\[", "[")
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper(), text, bracket
    if getattr(parameter, "multiple", False):
        text += " The flag may be repeated."
    return f"{_flags(parameter)} {_value_of(parameter)}".rstrip(), text, bracket


def _flags(parameter: Any) -> str:
    flags = sorted(parameter.opts, key=len)
    return f"--[no-]{flags[-1][2:]}" if parameter.secondary_opts else ", ".join(flags)


def _value_of(parameter: Any) -> str:
    if parameter.is_flag or parameter.count:
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    return value_name(parameter.type_descriptor.annotation)


def value_name(annotation: Any) -> str:
    """What stands for the value of a flag: N for a whole number, X for any other, NAME for one of some names."""
    if get_origin(annotation) is dict:
        return "NAME=WEIGHT"
    if get_origin(annotation) is tuple and Ellipsis not in get_args(annotation):
        return " ".join(map(value_name, get_args(annotation)))
    shown = str(annotation)
    kinds = {"Path": "PATH", "float": "X", "int": "N", "Literal": "NAME"}
    return next((name for kind, name in kinds.items() if kind in shown), "TEXT")


def _own_default(value: Any) -> str:
    return "" if value is None or value is False or value == "" else f"default: {value}"
