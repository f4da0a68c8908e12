"""Run a stage from the command line: remember the work directory, show progress, say what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipelines.errors import SsrError, UsageError
from ssr_cli.console import EXIT_PARTLY, ConsoleProgress, err, next_step, say_amid
from ssr_cli.invocation import Invocation

if TYPE_CHECKING:
    from pipelines.execution.progress import Progress
    from pipelines.workdir.counts import Counts
    from pipelines.workdir.workspace import Workspace


def run_stage(
    invocation: Invocation, stage: Callable[[Workspace, Progress], Counts], then: str, *, finishes: bool = False
) -> None:
    """Run one stage.

    Args:
        invocation: The command line.
        stage: Called with the workspace and a progress display.
        then: The obvious next command.
        finishes: It looks for signals itself, and finishes what is under way.

    Raises:
        typer.Exit: Code 3 if some images failed and the run went on without them.
    """
    from pipelines.execution.interruption import finishing_on_signals
    from pipelines.workdir.memory import refuse_other_dataset, remember

    workspace = replace(invocation.workspace, remembers=True)
    _ = workspace.dataset  # a wrong --root must not become the directory's memory
    refuse_other_dataset(workspace)
    try:
        with ConsoleProgress() as progress, finishing_on_signals(say_amid) if finishes else nullcontext():
            counts = stage(workspace, progress)
    except UsageError:
        raise
    except SsrError:  # nothing was wrong with the command: the next one need not say it again
        remember(workspace)
        raise
    conclude(counts, workspace.work, then, invocation)


def run_shared(
    invocation: Invocation, stage: str, arguments: tuple[Any, ...], outputs: Callable[[Workspace], tuple[Path, ...]], then: str
) -> None:
    """Run a stage that takes image by image: a share of the work list, on one device or several, or on a cluster.

    Args:
        invocation: The command line.
        stage: Of `pipelines.stages.scale.PER_IMAGE`.
        arguments: What it takes between workspace and progress.
        outputs: The stores and folders that it writes.
        then: The obvious next command.
    """
    run_stage(invocation, lambda workspace, progress: shared(invocation, stage, workspace, arguments, outputs, progress), then)


def shared(
    invocation: Invocation,
    stage: str,
    workspace: Workspace,
    arguments: tuple[Any, ...],
    outputs: Callable[[Workspace], tuple[Path, ...]],
    progress: Progress,
) -> Any:
    """What the stage comes to; see `run_shared`. A signal lets it finish what is under way."""
    from pipelines.execution.interruption import finishing_on_signals
    from pipelines.stages import launch as scale

    with finishing_on_signals(say_amid):
        if invocation.launcher is not None:
            progress.note(f"shard {invocation.shard} of the work list, by {invocation.launcher} (--shard 0/1 takes all)")
        return scale.run(scale.Job(stage, workspace, arguments, outputs(workspace)), invocation.scale, progress)


def conclude(counts: Counts, work: Path, then: str | None, invocation: Invocation) -> None:
    """Say what was left out and what comes next.

    Args:
        counts: Of the stage.
        work: The work directory.
        then: The obvious next command, if there is one.
        invocation: The command line.

    Raises:
        typer.Exit: Code 3 if some images failed and the run went on without them.
    """
    shard = invocation.shard
    if shard is None and os.environ.get("RANK", "0") != "0":  # of several processes that train, the first one speaks
        return
    log = work / "failures.jsonl" if shard is None else shard.place(work / "failures.jsonl")
    if counts.failed:
        err.print(f"[yellow]{counts.failed} bad images left out, listed in {log}[/]")
    if shard is not None:
        if shard.index == 0:
            after = f"once all {shard.count} shards are done"
            next_step(f"{then or 'ssr status'} --work {work}, or first ssr merge --work {work}, {after}")
    elif then is not None:
        next_step(f"{then} --work {work}")
    if counts.failed:
        raise typer.Exit(EXIT_PARTLY)
