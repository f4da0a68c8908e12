"""``ssr export``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer
from rich.markup import escape

from pipelines.options.export import ExportOptions
from ssr_cli.console import EXIT_PARTLY, ConsoleProgress, err, out, print_from_signal
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with


@command_with("export", "dataset", "run")
def command(invocation: Invocation) -> None:
    """Write masks, predictions or any folder of label maps in the format of another tool, to correct or to train on."""
    from pipelines.execution.interruption import finishing_on_signals
    from pipelines.stages import export

    flags = invocation.flags["export"]
    if {"images", "what"} <= flags.keys():  # no work directory is needed
        invocation = replace(invocation, fallback=Path(flags["what"]).absolute().parent)
    options = invocation.options("export", ExportOptions)
    with ConsoleProgress() as progress, finishing_on_signals(print_from_signal):
        exported = export.run(invocation.workspace, options, progress)
    out.print(f"{exported.done:,} images in [bold]{escape(str(exported.folder))}[/]")
    for words in exported.said:
        out.print(escape(words))
    if exported.failed:
        log = invocation.work / "failures.jsonl"
        err.print(f"[yellow]{exported.failed} bad images left out, listed in {escape(str(log))}[/]")
        raise typer.Exit(EXIT_PARTLY)
