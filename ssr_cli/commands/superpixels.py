"""``ssr superpixels``."""

from __future__ import annotations

from pipelines.options.stages import SuperpixelsOptions
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import run_per_image_stage


@command_with("superpixels", "dataset", "run", "scale")
def command(invocation: Invocation) -> None:
    """Compute SLIC superpixels of every image, into WORK/superpixels.h5."""
    from pipelines.stages import superpixels

    options = invocation.options("superpixels", SuperpixelsOptions)
    run_per_image_stage(invocation, superpixels, options, then="ssr cams")
