"""``ssr predict``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.options.tag import TagOptions
from pipelines.options.train import PredictOptions
from pipelines.stores.manifest import read_manifest
from ssr_cli.console import ConsoleProgress, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import launch, print_outcome

if TYPE_CHECKING:
    from pipelines.workdir.workspace import Workspace


@command_with("predict", "tag", "dataset", "clip", "dino", "run", "scale")
def command(invocation: Invocation) -> None:
    """Predict label maps of a split or of any folder of images (--images); opens no ground truth.

    With a trained model, or without any (--model tags): from class names alone, with what [cams] and [refine] say.
    """
    from pipelines.stages import label_free, predict

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
            folder = predict.output_folder(workspace, options)
            counts = launch(invocation, predict, workspace, options, progress=progress)
    out.print(f"{counts.done + counts.skipped:,} label maps in [bold]{escape(str(folder))}[/]")
    truth = None if options.images else workspace.dataset.mask_folder
    default = "retrained" if folder.parent == workspace.retrained.with_suffix("") else "predictions"
    what = default if options.output is None and not free else str(folder)
    scored = truth is not None and truth.is_dir()
    then = f"ssr eval {shlex.quote(what)} --split {shlex.quote(workspace.dataset_options.split)}" if scored else None
    if options.probabilities and not free and options.output is None:
        then = _masks_again(folder, workspace, invocation.options("refine", RefineOptions)) or then
    print_outcome(counts, invocation.work, then, invocation)


def _masks_again(folder: Path, workspace: Workspace, options: RefineOptions) -> str | None:
    """Return the command that makes the pseudo-masks of these images again with the probabilities, if it changes nothing else.

    Args:
        folder: Folder of the label maps, beside which the store of probabilities is.
        workspace: Where the masks are.
        options: What `ssr refine` would take without flags.
    """
    of_model, of_refined, of_masks = (read_manifest(path) for path in (folder, workspace.refined, workspace.masks))
    if of_model is None or of_refined is None or of_masks is None:
        return None
    made = of_refined.settings | of_masks.settings
    images = (manifest.dataset or {} for manifest in (of_model, of_masks))
    others = options.model_dump(mode="json", exclude={"boundary", "probabilities", "probability_weight"})
    if len({one.get("digest") for one in images}) > 1 or made.get("probabilities") == of_model.options_digest:
        return None
    if any(made.get(key, value) != value for key, value in others.items()):  # flags that the command would have to repeat
        return None
    store = "auto" if folder.parent == workspace.predictions else shlex.quote(str(folder.with_suffix(".h5")))
    return f"ssr refine --probabilities {store} --boundary {shlex.quote(str(made['boundary']))} --force"
