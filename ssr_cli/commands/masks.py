"""``ssr masks``."""

from __future__ import annotations

from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import look_at_masks, run_per_image_stage


@command_with("refine", "cams", "superpixels", "dataset", "clip", "dino", "run", "scale")
def command(invocation: Invocation) -> None:
    """Compute superpixels, CAMs and pseudo-masks in one pass of each encoder; the same files as stages 1, 3 and 4."""
    from pipelines.stages import masks

    sections = (
        invocation.options("superpixels", SuperpixelsOptions),
        invocation.options("cams", CamsOptions),
        invocation.options("refine", RefineOptions),
    )
    run_per_image_stage(invocation, masks, *sections, then=look_at_masks(invocation))
