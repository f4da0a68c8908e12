"""``ssr retrain``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich.markup import escape

from pipelines.options.retrain import RetrainOptions
from ssr_cli.console import out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import run_stage

if TYPE_CHECKING:
    from pipelines.execution.progress import Progress
    from pipelines.workdir.counts import Counts
    from pipelines.workdir.workspace import Workspace


@command_with("retrain", "dataset", "dino", "run")
def command(invocation: Invocation) -> None:
    """Train a standard segmentation network on the pseudo-masks with mmsegmentation, into WORK/retrained.safetensors."""
    from pipelines.stages.retrain import stage as retrain

    options = invocation.options("retrain", RetrainOptions)

    def run(workspace: Workspace, progress: Progress) -> Counts:
        counts = retrain.run(workspace, options, progress)
        if options.write_only and os.environ.get("RANK", "0") == "0":
            out.print(f"config in [bold]{escape(str(workspace.work / retrain.STAGE / 'config.py'))}[/]")
        return counts

    run_stage(
        invocation, run, then="ssr retrain" if options.write_only else "ssr predict --model retrained", graceful_stop=True
    )
