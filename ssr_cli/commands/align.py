"""``ssr align``."""

from __future__ import annotations

from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import run_stage


@command_with("align", "dataset", "clip", "dino", "run")
def command(invocation: Invocation) -> None:
    """Train CMPA's alignment heads on image-level labels, into WORK/cmpa.safetensors."""
    from pipelines.stages.align import stage as align

    options = invocation.options("align", AlignOptions)
    cams, refine = invocation.options("cams", CamsOptions), invocation.options("refine", RefineOptions)
    run_stage(
        invocation,
        lambda workspace, progress: align.run(workspace, options, cams, refine, progress),
        then="ssr cams --ckpt auto",
        graceful_stop=True,
    )
