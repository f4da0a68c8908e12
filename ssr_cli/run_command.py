"""Run a stage from the command line: settings of the work directory, progress, outcome, next command."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from pipelines.errors import SsrError, UsageError
from pipelines.options.sources import DatasetOptions
from ssr_cli.console import EXIT_PARTLY, ConsoleProgress, err, next_step, print_from_signal
from ssr_cli.invocation import Invocation

if TYPE_CHECKING:
    from pipelines.execution.progress import Progress
    from pipelines.stages.launch import PerImageStage
    from pipelines.workdir.counts import Counts
    from pipelines.workdir.workspace import Workspace


def run_stage(
    invocation: Invocation, stage: Callable[[Workspace, Progress], Counts], then: str, *, graceful_stop: bool = False
) -> None:
    """Run one stage.

    Args:
        invocation: The command line.
        stage: Called with the workspace and a progress display.
        then: Next command.
        graceful_stop: On a signal the stage finishes its current item and saves, instead of a KeyboardInterrupt.

    Raises:
        typer.Exit: Code 3 if some images failed and the run went on without them.
    """
    from pipelines.execution.interruption import finishing_on_signals
    from pipelines.workdir.memory import refuse_other_dataset, remember

    workspace = replace(invocation.workspace, remembers=True)
    dataset = workspace.dataset  # opened first: a wrong --root must not be saved in the work directory
    refuse_other_dataset(workspace)
    for words in (*dataset.understood, *dataset.passed_over, *dataset.classes.notes):
        err.print(f"[dim]{escape(words)}[/]")
    try:
        with ConsoleProgress() as progress, finishing_on_signals(print_from_signal) if graceful_stop else nullcontext():
            counts = stage(workspace, progress)
    except UsageError:
        raise
    except SsrError:  # the command line was accepted: later commands may rely on its settings
        remember(workspace)
        raise
    print_outcome(counts, workspace.work, then, invocation)


def run_per_image_stage(invocation: Invocation, stage: PerImageStage, *arguments: Any, then: str) -> None:
    """Run a per-image stage on one device, several devices or a cluster; see `run_stage`.

    Args:
        invocation: The command line.
        stage: Module of the stage.
        *arguments: Arguments of the stage between workspace and progress.
        then: Next command.
    """
    run_stage(invocation, lambda workspace, progress: launch(invocation, stage, workspace, *arguments, progress=progress), then)


def launch(invocation: Invocation, stage: PerImageStage, workspace: Workspace, *arguments: Any, progress: Progress) -> Any:
    """Result of a per-image stage; see `run_per_image_stage`. On a signal the current images are finished and saved."""
    from pipelines.execution.interruption import finishing_on_signals

    with finishing_on_signals(print_from_signal):
        if invocation.launcher is not None:
            progress.note(f"shard {invocation.shard} of the work list, by {invocation.launcher} (--shard 0/1 takes all)")
        if not invocation.scale.shares_out:
            return stage.run(workspace, *arguments, progress)
        from pipelines.stages.launch import job_of, run

        return run(job_of(stage, workspace, *arguments), invocation.scale, progress)


def look_at_masks(invocation: Invocation) -> str:
    """The command after pseudo-masks: their score, or pictures of them where a folder of photos has no ground truth."""
    from pipelines.datasets.folder import may_have_masks

    dataset = invocation.options("dataset", DatasetOptions)
    return "ssr eval" if may_have_masks(dataset.kind, dataset.root) else "ssr show"


def print_outcome(counts: Counts, work: Path, then: str | None, invocation: Invocation) -> None:
    """Print how many images were left out and which command comes next.

    Args:
        counts: Result of the stage.
        work: The work directory.
        then: Next command, or None.
        invocation: The command line.

    Raises:
        typer.Exit: Code 3 if some images failed and the run went on without them.
    """
    from pipelines.workdir.commands import command_for
    from pipelines.workdir.made_from import runnable

    shard = invocation.shard
    if shard is None and os.environ.get("RANK", "0") != "0":  # only the first process of a training prints
        return
    log = work / "failures.jsonl" if shard is None else shard.place(work / "failures.jsonl")
    if counts.failed:
        err.print(f"[yellow]{counts.failed} bad images left out, listed in {escape(str(log))}[/]")
    if shard is not None:
        if shard.index == 0:
            after = f"once all {shard.count} shards are done"
            first, merge = command_for(work, then or "ssr status"), command_for(work, "ssr merge")
            next_step(f"{first}, or first {merge}, {after}")
    elif then is not None:
        next_step(command_for(work, runnable(work, then)))
    if counts.failed:
        raise typer.Exit(EXIT_PARTLY)
