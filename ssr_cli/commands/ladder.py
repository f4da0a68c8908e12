"""``ssr ladder``."""

from __future__ import annotations

from pipelines.options.stages import RefineOptions
from ssr_cli.invocation import Invocation
from ssr_cli.outcome import run_stage
from ssr_cli.parameters import command_with


@command_with("refine", "dataset", "clip", "dino", "run")
def command(invocation: Invocation) -> None:
    """Refine the CAMs with one part more at a time into WORK/ladder; `ssr eval ladder` says what each brings."""
    from pipelines.stages import ladder

    options = invocation.options("refine", RefineOptions)
    run_stage(
        invocation, lambda workspace, progress: ladder.run(workspace, options, progress), then="ssr eval ladder", finishes=True
    )
