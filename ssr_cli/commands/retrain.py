"""``ssr retrain``."""

from __future__ import annotations

from rich.markup import escape

from pipelines.options.retrain import RetrainOptions
from ssr_cli.console import out
from ssr_cli.invocation import Invocation
from ssr_cli.outcome import run_stage
from ssr_cli.parameters import command_with


@command_with("retrain", "dataset", "dino", "run")
def command(invocation: Invocation) -> None:
    """Train a standard segmentation network on mmsegmentation from the pseudo-masks, into WORK/retrained.safetensors."""
    from pipelines.stages import retrain

    options = invocation.options("retrain", RetrainOptions)
    config = invocation.work / retrain.FOLDER / "config.py"
    then = "ssr retrain" if options.write_only else "ssr predict --model retrained"
    try:
        run_stage(invocation, lambda workspace, progress: retrain.run(workspace, options, progress), then=then)
    finally:
        if options.write_only and config.is_file():
            out.print(f"config in [bold]{escape(str(config))}[/]")
