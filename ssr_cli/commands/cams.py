"""``ssr cams``."""

from __future__ import annotations

from pipelines.options.stages import CamsOptions
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import run_per_image_stage


@command_with("cams", "dataset", "clip", "run", "scale")
def command(invocation: Invocation) -> None:
    """Compute class activation maps of each image's classes, into WORK/cams.h5."""
    from pipelines.stages import cams

    options = invocation.options("cams", CamsOptions)
    run_per_image_stage(invocation, cams, options, then="ssr refine")
