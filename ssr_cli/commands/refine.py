"""``ssr refine``."""

from __future__ import annotations

from pipelines.options.stages import RefineOptions
from ssr_cli.invocation import Invocation
from ssr_cli.outcome import run_shared
from ssr_cli.parameters import command_with


@command_with("refine", "dataset", "clip", "dino", "run", "scale")
def command(invocation: Invocation) -> None:
    """Refine CAMs along CLIP + DINO attention into WORK/refined.h5 and pseudo-masks in WORK/masks."""
    options = invocation.options("refine", RefineOptions)
    run_shared(invocation, "refine", (options,), lambda workspace: (workspace.refined, workspace.masks), then="ssr eval")
