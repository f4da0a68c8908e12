"""The ``ssr`` command: one line per subcommand. Nothing heavy is imported until a subcommand runs."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    # name: what it does, in the order in which people need it
    "doctor": "Check environment, weights and dataset before hours are spent.",
    "sample": "Draw a small dataset with masks, to try everything on.",
    "labels": "Turn XML, COCO JSON, masks, CSV or one-hot .npy into a label file.",
    "text": "Write a text bank: class embeddings without the text tower.",
    "superpixels": "1  SLIC superpixels of every photo -> superpixels.h5",
    "align": "2  CMPA: heads that match images and words -> cmpa.safetensors",
    "cams": "3  Class activation maps from the frozen CLIP -> cams.h5",
    "refine": "4  CLIP + DINO affinity, superpixel mask, CRF -> masks/*.png",
    "train": "5  A segmentation model from pseudo-masks made on line -> model.safetensors",
    "predict": "6  Label maps of any photos from the trained model -> predictions/*.png",
    "eval": "7  Score CAMs, masks or any folder of PNGs against ground truth.",
    "retrain": "A standard segmentation network on mmsegmentation, from the pseudo-masks.",
    "merge": "One output of what shards of the work list have written.",
    "ablation": "The same refinement, one part more at a time: what does each bring?",
    "show": "Pictures: panels, a contact sheet, one HTML page.",
    "report": "Scores, ablation and pictures on one HTML page.",
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

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """A completion flag may be followed by the name of a shell; Typer's own takes none."""
        if args and args[0] in {"--install-completion", "--show-completion"} and not ctx.resilient_parsing:
            from ssr_cli.completion import complete

            complete(ctx, args[0], args[1:])
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=LazyGroup,
    invoke_without_command=True,
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
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", callback=_version, is_eager=True),
) -> None:
    """From photos and class names to pseudo-masks and a model: superpixels, cams, refine, train, predict, eval."""
    if ctx.invoked_subcommand is None:
        from ssr_cli.way import show_way

        show_way(COMMANDS)


def main() -> None:
    """Entry point of the ``ssr`` command."""
    if "_SSR_COMPLETE" in os.environ:
        from ssr_cli.completion import prepare

        prepare(os.environ)
    sys.exit(app())
