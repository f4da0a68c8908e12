"""``ssr status``."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from ssr_cli.console import next_step, out
from ssr_cli.invocation import Invocation, refuse_missing
from ssr_cli.parameters import command_with


@command_with()
def command(invocation: Invocation) -> None:
    """Show what a work directory holds and which command comes next."""
    from pipelines.datasets.names import some
    from pipelines.stages.status import status, with_outdated

    if invocation.config is None:  # else it says which command comes first
        refuse_missing(invocation.work)
    state = with_outdated(invocation.work, status(invocation.work))
    out.print(f"[bold]{escape(str(invocation.work))}[/]: {escape(state.dataset)}; recipe {escape(state.recipe)}")
    table = Table()
    for column in ("output", "images", "state", "options digest", "updated"):
        table.add_column(column)
    for output in state.outputs:
        images = f"{output.images}/{output.total or '?'}"
        table.add_row(output.name, images, output.state, output.options_digest, output.updated)
    out.print(table)
    for output in state.outputs:
        if output.outdated:
            line = f"{output.name}: {len(output.outdated)} images out of date, with other labels or another photo, or new"
            if output.trained:
                line = f"{output.name}: {len(output.outdated)} photos were replaced after the training was begun, which"
                line += f" `{output.made_by} --force` trains anew"
            elif "/" in output.name:
                line = f"{output.name}: {len(output.outdated)} images out of date, with another photo"
            out.print(f"[yellow]{escape(f'{line}: {some(output.outdated)}')}[/]")
    for report in state.reports:
        out.print(f"{escape(report.caption)}: mIoU {100 * report.miou:.2f}")
    next_step(state.next_command)
