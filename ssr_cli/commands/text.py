"""``ssr text``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipelines.options.sources import ClipOptions, DatasetOptions
from ssr_cli.console import next_step, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with


@command_with("dataset", "clip")
def command(
    invocation: Invocation,
    target: Annotated[
        Path,
        typer.Argument(metavar="TARGET", help="Text bank to write (.safetensors); background words go to TARGET-background."),
    ],
) -> None:
    """Embed class names and background words with the text tower, and write them as text banks."""
    from pipelines.stages.text import write_banks

    dataset, clip = invocation.options("dataset", DatasetOptions), invocation.options("clip", ClipOptions)
    classes, background = write_banks(dataset, clip, target)
    out.print(escape(f"{classes}\n{background}"))
    banks = "--text-bank", str(classes), "--background-bank", str(background)
    next_step(invocation.command("ssr cams", "dataset", "clip", more=banks, without=("text_bank", "background_bank")))
