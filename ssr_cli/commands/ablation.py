"""``ssr ablation``."""

from __future__ import annotations

from pipelines.options.stages import RefineOptions
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import run_stage


@command_with("refine", "dataset", "clip", "dino", "run")
def command(invocation: Invocation) -> None:
    """Refine the CAMs with one part more at a time into WORK/ablation; `ssr eval ablation` says what each brings."""
    from pipelines.stages import ablation

    options = invocation.options("refine", RefineOptions)
    run_stage(
        invocation,
        lambda workspace, progress: ablation.run(workspace, options, progress),
        then="ssr eval ablation",
        graceful_stop=True,
    )
