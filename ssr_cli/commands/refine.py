"""``ssr refine``."""

from __future__ import annotations

from pipelines.options.stages import RefineOptions
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import look_at_masks, run_per_image_stage


@command_with("refine", "dataset", "clip", "dino", "run", "scale")
def command(invocation: Invocation) -> None:
    """Refine CAMs along CLIP + DINO attention, into WORK/refined.h5 and pseudo-masks in WORK/masks."""
    from pipelines.stages import refine

    options = invocation.options("refine", RefineOptions)
    run_per_image_stage(invocation, refine, options, then=look_at_masks(invocation))
