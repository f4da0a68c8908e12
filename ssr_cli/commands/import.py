"""``ssr import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipelines.options.export import ImportOptions
from pipelines.workdir.commands import command_for
from ssr_cli.console import EXIT_PARTLY, ConsoleProgress, err, next_step, out, print_from_signal
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with


@command_with("import", "dataset", "run")
def command(
    invocation: Invocation,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="File of masks (.zip) or XML from CVAT, of instances from COCO, or of JSON from Label Studio."
        ),
    ],
) -> None:
    """Take over masks that people corrected in CVAT, Label Studio or any tool that writes COCO, into WORK/corrected."""
    from pipelines.execution.interruption import finishing_on_signals
    from pipelines.stages import corrections

    with ConsoleProgress() as progress, finishing_on_signals(print_from_signal):
        imported = corrections.run(invocation.workspace, file, invocation.options("import", ImportOptions), progress)
    out.print(f"{imported.done:,} corrected masks, now {imported.total:,} in [bold]{escape(str(imported.folder))}[/]")
    for words in imported.said:
        err.print(f"[yellow]{escape(words)}[/]")
    next_step(command_for(invocation.work, "ssr retrain"))
    if imported.failed:
        log = invocation.work / "failures.jsonl"
        err.print(f"[yellow]{imported.failed} left out, listed in {escape(str(log))}[/]")
        raise typer.Exit(EXIT_PARTLY)
