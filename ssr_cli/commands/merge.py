"""``ssr merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ssr_cli.commands.eval import print_evaluation
from ssr_cli.console import EXIT_PARTLY, err, next_step, out
from ssr_cli.invocation import Invocation, refuse_missing
from ssr_cli.parameters import command_with


@command_with()
def command(
    invocation: Invocation,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDERS", help="Further folders with outputs of shards, such as --output of `ssr predict`."),
    ] = None,
) -> None:
    """Merge the outputs of all shards into one, the same bytes as those of a single process."""
    from pipelines.stages import merge
    from pipelines.stages.status import status

    work = invocation.work
    refuse_missing(work)
    outputs = merge.run(work, folders or ())
    for merged in outputs:
        name = escape(str(merged.output))
        shards = f"{merged.shards} shard{'s' if merged.shards != 1 else ''}"
        if merged.missing:
            missing = ", ".join(map(str, merged.missing[:8])) + (", ..." if len(merged.missing) > 8 else "")
            err.print(f"[yellow]{name}: {shards} merged; not complete without {missing}[/]" if merged.images else
                      f"[yellow]{name}: not merged without {missing}[/]")  # fmt: skip
        else:
            out.print(f"[bold]{name}[/]: {merged.images:,} images of {shards}")
        for evaluation in merged.evaluations:
            print_evaluation(evaluation)
    if not outputs:
        out.print(f"no shards in {escape(str(work))}: nothing to merge")
    next_step(status(work).next_command)
    if any(merged.missing for merged in outputs):
        raise typer.Exit(EXIT_PARTLY)
