"""``ssr doctor``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from pipelines.options.stages import RefineOptions
from ssr_cli.console import next_step, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with

MARKS = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "error": "[red]error[/]  "}


@command_with("dataset", "clip", "dino", "run")
def command(
    invocation: Invocation,
    gt: Annotated[
        bool,
        typer.Option("--gt", help="Also check ground-truth masks (opens them): the sizes of all, and the values of up to 400."),
    ] = False,
) -> None:
    """Check the environment, the weights, the words and the dataset before a long run."""
    from pipelines.datasets.unlabelled import lacks_labels
    from pipelines.stages import doctor

    errors = 0
    for finding in doctor.diagnose(invocation.workspace, invocation.options("refine", RefineOptions), gt):
        out.print(f"{MARKS[finding.level]} {finding.topic}: {escape(finding.message)}")
        errors += finding.level == "error"
    if errors:
        out.print(f"[red]{errors} errors[/]: a run would fail")
        raise typer.Exit(1)
    following = "ssr tag" if lacks_labels(invocation.workspace.dataset_options) else "ssr superpixels"
    next_step(invocation.command(following, "dataset", "run"))
