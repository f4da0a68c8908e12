"""``ssr review``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipelines.workdir.commands import command_for
from ssr_cli.console import EXIT_PARTLY, ConsoleProgress, next_step, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with


@command_with("dataset", "run")
def command(
    invocation: Invocation,
    top: Annotated[int, typer.Option(min=0, help="Masks on the pages with pictures, the most doubtful first; 0 = all.")] = 200,
    per_page: Annotated[int, typer.Option("--per-page", min=1, help="Masks on a page; more masks make further pages.")] = 200,
    apply: Annotated[
        list[Path] | None,
        typer.Option(
            "--apply",
            help="Marks that a page saved, once for each page, or a folder with review*.json: "
            "pixels of bad masks become 255 in WORK/corrected.",
        ),
    ] = None,
) -> None:
    """List pseudo-masks by confidence, the most doubtful first, on pages to mark them; opens no ground truth."""
    from pipelines.stages import review

    if apply:
        done = review.apply(invocation.workspace, apply)
        counted = ", ".join(f"{count} {mark}" for mark, count in done.marks.items())
        out.print(f"{counted}; {done.changed} corrected masks in [bold]{escape(str(done.folder))}[/]", highlight=False)
        if done.taken_back:
            out.print(f"{done.taken_back} images are as their pseudo-masks again: none of their masks is bad any more")
        if done.left_out:
            out.print(
                f"{done.left_out} of them are 255 everywhere: all their classes are bad, and nothing is learned from them"
            )
        if done.fix is not None:
            next_step(command_for(invocation.work, f"ssr export cvat --split {shlex.quote(str(done.fix))}"))
        return
    with ConsoleProgress() as progress:
        made = review.run(invocation.workspace, top, per_page, progress)
    out.print(f"{made.masks:,} masks of single classes, most doubtful first: [bold]{escape(str(made.table))}[/]")
    further = "" if made.pages == 1 else f" and {made.pages - 1} more linked with it"
    out.print(f"the first {made.shown:,}, to mark: [bold]{escape(str(made.page))}[/]{further}")
    next_step(command_for(invocation.work, "ssr review --apply review.json"))
    if made.failed:
        raise typer.Exit(EXIT_PARTLY)
