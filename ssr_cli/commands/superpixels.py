"""``ssr superpixels``."""

from __future__ import annotations

from pipelines.options.stages import SuperpixelsOptions
from ssr_cli.invocation import Invocation
from ssr_cli.outcome import run_stage
from ssr_cli.parameters import command_with


@command_with("superpixels", "dataset", "run")
def command(invocation: Invocation) -> None:
    """Compute SLIC superpixels of every photo into WORK/superpixels.h5."""
    from pipelines.stages import superpixels

    options = invocation.options("superpixels", SuperpixelsOptions)
    run_stage(invocation, lambda workspace, progress: superpixels.run(workspace, options, progress), then="ssr cams")
