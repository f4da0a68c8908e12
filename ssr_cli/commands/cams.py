"""``ssr cams``."""

from __future__ import annotations

from pipelines.options.stages import CamsOptions
from ssr_cli.invocation import Invocation
from ssr_cli.outcome import run_stage
from ssr_cli.parameters import command_with


@command_with("cams", "dataset", "clip", "run")
def command(invocation: Invocation) -> None:
    """Compute class activation maps of every photo's own classes into WORK/cams.h5."""
    from pipelines.stages import cams

    options = invocation.options("cams", CamsOptions)
    run_stage(invocation, lambda workspace, progress: cams.run(workspace, options, progress), then="ssr refine")
