"""``ssr predict``."""

from __future__ import annotations

import shlex
from dataclasses import replace

from rich.markup import escape

from pipelines.config import flag_of
from pipelines.errors import UsageError
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.options.tag import TagOptions
from pipelines.options.train import PredictOptions
from ssr_cli.console import ConsoleProgress, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import launch, print_outcome


@command_with("predict", "tag", "dataset", "clip", "dino", "run", "scale")
def command(invocation: Invocation) -> None:
    """Predict label maps of a split or of any folder of images (--images); opens no ground truth.

    With a trained model, or without any (--model tags): from class names alone, with what [cams] and [refine] say.
    """
    from pipelines.stages import label_free, predict
    from pipelines.workdir.made_from import masks_again

    flags = invocation.flags["predict"]
    if {"images", "model", "output"} <= flags.keys():  # no work directory is needed
        invocation = replace(invocation, fallback=flags["output"].parent)
    options, workspace = invocation.options("predict", PredictOptions), invocation.workspace
    with ConsoleProgress() as progress:
        if free := label_free.is_label_free(options):
            more = (
                invocation.options("tag", TagOptions),
                invocation.options("superpixels", SuperpixelsOptions),
                invocation.options("cams", CamsOptions),
                invocation.options("refine", RefineOptions),
            )
            workspace = label_free.photos_of(workspace, options)
            folder = label_free.output_folder(workspace, options)
            counts = launch(invocation, label_free, workspace, options, *more, progress=progress)
        else:
            if given := [flag_of("tag", key) for key in invocation.flags.get("tag", {})]:
                raise UsageError(f"{given[0]}: a trained model needs no tags", "leave it out, or --model tags or heads")
            folder = predict.output_folder(workspace, options)
            counts = launch(invocation, predict, workspace, options, progress=progress)
    out.print(f"{counts.done + counts.skipped:,} label maps in [bold]{escape(str(folder))}[/]")
    truth = None if options.images else workspace.dataset.mask_folder
    default = "retrained" if folder.parent == workspace.retrained.with_suffix("") else "predictions"
    what = default if options.output is None and not free else str(folder)
    scored = truth is not None and truth.is_dir()
    then = f"ssr eval {shlex.quote(what)} --split {shlex.quote(workspace.dataset_options.split)}" if scored else None
    if options.probabilities and not free and options.output is None:
        then = masks_again(folder, workspace, invocation.options("refine", RefineOptions)) or then
    print_outcome(counts, invocation.work, then, invocation)
