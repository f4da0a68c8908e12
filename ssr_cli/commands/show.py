"""``ssr show``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipelines.errors import UsageError
from pipelines.options.align import AlignOptions
from pipelines.options.stages import ShowOptions
from pipelines.plugins import load_plugins
from ssr_cli.console import EXIT_PARTLY, ConsoleProgress, err, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with

if TYPE_CHECKING:
    from pipelines.stages.features import Separation

WHAT = ["panels", "features"]


@command_with("show", "dataset", "run")
def command(
    invocation: Invocation,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="What to draw: panels of images, or a map of image features before and after `ssr align`.",
            show_default=True,
            autocompletion=lambda: WHAT,
        ),
    ] = "panels",
) -> None:
    """Draw panels, a contact sheet and one self-contained HTML page into WORK/show."""
    if what == "features":
        _features(invocation)
    elif what == "panels":
        _panels(invocation)
    elif "kind" not in invocation.flags["dataset"] and _is_dataset(what):  # `ssr show voc`: the dataset alone
        dataset = {**invocation.flags["dataset"], "kind": what}
        _panels(replace(invocation, flags={**invocation.flags, "dataset": dataset}))
    else:
        raise UsageError(f"nothing called {what!r} to show", f"one of {', '.join(WHAT)}")


def _is_dataset(name: str) -> bool:
    from pipelines.datasets import KINDS

    load_plugins()
    return name in KINDS


def _panels(invocation: Invocation) -> None:
    from pipelines.stages import show

    with ConsoleProgress() as progress:
        shown = show.run(invocation.workspace, invocation.options("show", ShowOptions), progress)
    sheet, page = escape(str(shown.sheet)), escape(str(shown.page))
    out.print(f"{len(shown.panels)} panels, contact sheet [bold]{sheet}[/], page [bold]{page}[/]")
    if shown.failed:
        raise typer.Exit(EXIT_PARTLY)


def _features(invocation: Invocation) -> None:
    from pipelines.stages import features

    options = invocation.options("align", AlignOptions), invocation.options("show", ShowOptions)
    with ConsoleProgress() as progress:
        made = features.run(invocation.workspace, *options, progress)
    table = Table(title=f"features · {made.samples:,} samples (image, class) of {made.photos:,} images", title_justify="left")
    table.add_column("alignment")
    for column in ("cluster purity", "distance within classes", "between"):
        table.add_column(column, justify="right")
    table.add_row("before", *_cells(made.before))
    table.add_row("after", *_cells(made.after))
    out.print(table)
    out.print(f"map [bold]{escape(str(made.picture))}[/], numbers [bold]{escape(str(made.numbers))}[/]")
    if made.left_out:
        err.print(f"[yellow]{made.left_out} images left out: not in the training of `ssr align`, or with other labels there[/]")


def _cells(separation: Separation) -> tuple[str, str, str]:
    between = "-" if separation.between is None else f"{separation.between:.3f}"
    return f"{100 * separation.purity:.1f} %", f"{separation.within:.3f}", between
