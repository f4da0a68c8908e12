"""``ssr status``."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from ssr_cli.console import next_step, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with


@command_with()
def command(invocation: Invocation) -> None:
    """Say what is done in a work directory, and what comes next."""
    from pipelines.stages.status import status

    found = status(invocation.work)
    out.print(f"[bold]{escape(str(invocation.work))}[/]: {escape(found.dataset)}; recipe {escape(found.recipe)}")
    table = Table()
    for column in ("output", "images", "state", "options digest", "updated"):
        table.add_column(column)
    for output in found.outputs:
        images = f"{output.images}/{output.total or '?'}"
        table.add_row(output.name, images, output.state, output.options_digest, output.updated)
    out.print(table)
    for report in found.reports:
        out.print(f"{escape(report.caption)}: mIoU {100 * report.miou:.2f}")
    next_step(found.next_command)
