"""``ssr predict``."""

from __future__ import annotations

from dataclasses import replace

from rich.markup import escape

from pipelines.options.train import PredictOptions
from ssr_cli.console import ConsoleProgress, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import launch, print_outcome


@command_with("predict", "dataset", "clip", "run", "scale")
def command(invocation: Invocation) -> None:
    """Label maps of a split, or of any folder of photos (--images), from the model of `ssr train`; opens no ground truth."""
    from pipelines.stages import predict

    given = invocation.flags["predict"]
    if {"images", "model", "output"} <= given.keys():  # nothing is left to look for in a work directory
        invocation = replace(invocation, fallback=given["output"].parent)
    options, workspace = invocation.options("predict", PredictOptions), invocation.workspace
    with ConsoleProgress() as progress:  # the work directory goes on remembering the split that it was made for
        folder = predict.output_folder(workspace, options)
        counts = launch(invocation, predict, workspace, options, progress=progress)
    out.print(f"{counts.done + counts.skipped:,} label maps in [bold]{escape(str(folder))}[/]")
    truth = None if options.images else workspace.dataset.mask_folder
    own = "retrained" if folder.parent == workspace.retrained.with_suffix("") else "predictions"
    what = own if options.output is None else str(folder)
    scored = truth is not None and truth.is_dir()
    then = f"ssr eval {what} --split {workspace.dataset_options.split}" if scored else None
    print_outcome(counts, invocation.work, then, invocation)
