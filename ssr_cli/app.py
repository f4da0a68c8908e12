"""The ``ssr`` command: one line per subcommand. Nothing heavy is imported until a subcommand runs."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    # name: what it does, in the order in which people need it
    "doctor": "Check environment, weights and dataset before hours are spent.",
    "labels": "Turn XML, COCO JSON, masks, CSV or one-hot .npy into a label file.",
    "text": "Write a text bank: class embeddings without the text tower.",
    "superpixels": "1  SLIC superpixels of every photo -> superpixels.h5",
    "cams": "2  Class activation maps from the frozen CLIP -> cams.h5",
    "refine": "3  CLIP + DINO affinity, superpixel mask, CRF -> masks/*.png",
    "eval": "4  Score CAMs, masks or any folder of PNGs against ground truth.",
    "show": "Pictures: panels, a contact sheet, one HTML page.",
    "status": "What is done in a work directory, and what comes next.",
}


class LazyCommand(TyperCommand):
    """Stands for a subcommand until it is used, so that ``ssr --help`` imports none of them."""

    def load(self) -> Any:
        """The real command, from ``ssr_cli.commands.<name>``."""
        module = import_module(f"ssr_cli.commands.{self.name}")
        app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        app.command(name=self.name, help=module.command.__doc__)(module.command)
        return typer.main.get_command(app)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Hand over to the real command."""
        return self.load().make_context(info_name, args, parent=parent, **extra)


class LazyGroup(TyperGroup):
    """The table `COMMANDS` as a command group."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in for the named subcommand."""
        if cmd_name not in COMMANDS:
            return None
        return LazyCommand(cmd_name, callback=None, params=[], help=COMMANDS[cmd_name], rich_help_panel=None)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ssr {version('ssr')}")
        raise typer.Exit


@app.callback()
def ssr(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", callback=_version, is_eager=True),
) -> None:
    """From photos and class names to pseudo-masks: superpixels, cams, refine, eval, in this order."""


def main() -> None:
    """Entry point of the ``ssr`` command."""
    sys.exit(app())
