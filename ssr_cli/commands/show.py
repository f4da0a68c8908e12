"""``ssr show``."""

from __future__ import annotations

import typer

from pipelines.options.stages import ShowOptions
from ssr_cli.console import EXIT_PARTLY, ConsoleProgress, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with


@command_with("show", "dataset", "run")
def command(invocation: Invocation) -> None:
    """Draw panels, a contact sheet and one self-contained HTML page into WORK/show."""
    from pipelines.stages import show

    with ConsoleProgress() as progress:
        shown = show.run(invocation.workspace, invocation.options("show", ShowOptions), progress)
    out.print(f"{len(shown.panels)} panels, contact sheet [bold]{shown.sheet}[/], page [bold]{shown.page}[/]")
    if shown.failed:
        raise typer.Exit(EXIT_PARTLY)
