"""``ssr report``."""

from __future__ import annotations

from rich.markup import escape

from pipelines.options.stages import ShowOptions
from ssr_cli.console import ConsoleProgress, next_step, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with


@command_with("show", "dataset", "run")
def command(invocation: Invocation) -> None:
    """Put the ablation, every evaluation and pictures on one HTML page, WORK/report.html."""
    from pipelines.stages import report
    from pipelines.stages.status import status

    with ConsoleProgress() as progress:
        page = report.run(invocation.workspace, invocation.options("show", ShowOptions), progress)
    out.print(f"report: [bold]{escape(str(page.absolute()))}[/]")
    next_step(status(invocation.work).next_command)
