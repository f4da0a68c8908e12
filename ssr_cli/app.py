"""The ``ssr`` command: one line per subcommand. Nothing heavy is imported until a subcommand runs."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ssr_cli.help import SsrCommand, entry_of, print_help

PANELS = {
    # title: name: what it does, in the order of use
    "To begin with": {
        "init": "Write ssr.toml for a folder of photos: asks, or takes flags, and names the next command.",
        "doctor": "Check the environment, the weights and the dataset before a long run.",
        "sample": "Draw a small synthetic dataset with masks, to try every command on.",
        "labels": "Convert XML, COCO JSON, masks, CSV or one-hot .npy to a label file; --check finds wrong labels.",
        "tag": "Tag images with the classes that they show, from the class names alone -> tags.csv",
        "text": "Write text banks: class embeddings that replace the text tower.",
    },
    "Stages, in order": {
        "superpixels": "1  Compute SLIC superpixels of every image -> superpixels.h5",
        "align": "2  Train CMPA's alignment heads (image and text) -> cmpa.safetensors",
        "cams": "3  Make class activation maps with the frozen CLIP -> cams.h5",
        "refine": "4  Refine them with affinity and superpixels, and follow edges -> masks/*.png",
        "masks": "Do stages 1, 3 and 4 in one pass of each encoder -> the same files",
        "train": "5  Train a segmentation decoder on pseudo-masks made online -> model.safetensors",
        "predict": "6  Predict label maps of a split or of any folder of images -> predictions/*.png",
        "eval": "7  Score CAMs, masks or any folder of PNGs against ground truth.",
    },
    "With the masks": {
        "export": "Write label maps for CVAT, Label Studio, COCO, YOLO and others.",
        "import": "Take over masks that people corrected in CVAT, Label Studio or as COCO.",
        "review": "List pseudo-masks by confidence, the most doubtful first, on a page to mark them.",
        "retrain": "Train a standard segmentation network on the pseudo-masks with mmsegmentation.",
        "onnx": "Write the trained model or retrained network as one ONNX file, compared with torch -> model.onnx",
    },
    "To look at and compare": {
        "status": "Show what a work directory holds and which command comes next.",
        "show": "Draw panels of images, a contact sheet and one HTML page.",
        "report": "Put scores, ablation and pictures on one HTML page.",
        "ablation": "Add one component at a time, and compare.",
        "merge": "Merge the outputs of all shards into one.",
    },
}

COMMANDS = {name: text for commands in PANELS.values() for name, text in commands.items()}


class LazyCommand(TyperCommand):
    """Placeholder of a subcommand: its module is imported when it runs, so that ``ssr --help`` imports none."""

    def load(self) -> Any:
        """The real command, from ``ssr_cli.commands.<name>``."""
        module = import_module(f"ssr_cli.commands.{self.name}")
        app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        app.command(name=self.name, help=module.command.__doc__, cls=SsrCommand)(module.command)
        return typer.main.get_command(app)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Context of the real command."""
        return self.load().make_context(info_name, args, parent=parent, **extra)


class LazyGroup(TyperGroup):
    """The table `COMMANDS` as a command group."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Placeholder of the named subcommand."""
        if cmd_name not in COMMANDS:
            return None
        return LazyCommand(cmd_name, callback=None, params=[], help=COMMANDS[cmd_name], rich_help_panel=None)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, the commands by use, and the flags without a command."""
        panels = {title: [(name, text, "") for name, text in commands.items()] for title, commands in PANELS.items()}
        options = [entry_of(parameter) for parameter in self.get_params(ctx)]
        print_help(self.get_usage(ctx), self.help or "", panels | {"Flags without a command": options})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the name of a shell after a completion flag; Typer's own flag takes none."""
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


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"ssr {version('ssr-wsss')}")
        except PackageNotFoundError:  # the files of a checkout on the import path
            typer.echo("ssr, not installed: no version")
        raise typer.Exit


@app.callback()
def ssr(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", callback=_version, is_eager=True),
) -> None:
    """From images and class names to pseudo-masks and a segmentation model, stage by stage."""
    if ctx.invoked_subcommand is None:
        from ssr_cli.overview import print_overview

        print_overview(COMMANDS)


def main() -> None:
    """Entry point of the ``ssr`` command."""
    if "_SSR_COMPLETE" in os.environ:
        from ssr_cli.completion import prepare

        prepare(os.environ)
    sys.exit(app())
