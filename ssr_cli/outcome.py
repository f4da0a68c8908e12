"""Run a stage from the command line: remember the work directory, show progress, say what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipelines.errors import UsageError
from ssr_cli.console import EXIT_PARTLY, ConsoleProgress, err, next_step
from ssr_cli.invocation import Invocation

if TYPE_CHECKING:
    from pipelines.execution.progress import Progress
    from pipelines.stages.counts import Counts
    from pipelines.stages.workspace import Workspace


def run_stage(invocation: Invocation, stage: Callable[[Workspace, Progress], Counts], then: str) -> None:
    """Run one stage.

    Args:
        invocation: The command line.
        stage: Called with the workspace and a progress display.
        then: The obvious next command.

    Raises:
        typer.Exit: Code 3 if some images failed and the run went on without them.
    """
    from pipelines.stages.workspace import recall

    workspace = invocation.workspace
    _ = workspace.dataset  # a wrong --root must not become the directory's memory
    before = recall(workspace.work)
    workspace.remember()
    try:
        with ConsoleProgress() as progress:
            counts = stage(workspace, progress)
    except UsageError:  # refused: the next command must not inherit what was wrong
        workspace.restore(before)
        raise
    conclude(counts, workspace.work, then)


def conclude(counts: Counts, work: Path, then: str | None) -> None:
    """Say what was left out and what comes next.

    Args:
        counts: Of the stage.
        work: The work directory.
        then: The obvious next command, if there is one.

    Raises:
        typer.Exit: Code 3 if some images failed and the run went on without them.
    """
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        return
    if counts.failed:
        err.print(f"[yellow]{counts.failed} bad images left out, listed in {work / 'failures.jsonl'}[/]")
    if then is not None:
        next_step(f"{then} --work {work}")
    if counts.failed:
        raise typer.Exit(EXIT_PARTLY)
