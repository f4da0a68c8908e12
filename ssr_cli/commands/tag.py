"""``ssr tag``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.markup import escape

from pipelines.options.stages import CamsOptions, SuperpixelsOptions
from pipelines.options.tag import TagOptions
from ssr_cli.console import ConsoleProgress, err, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import launch, print_outcome

if TYPE_CHECKING:
    from pipelines.stages.tag import Tags


@command_with("tag", "cams", "superpixels", "dataset", "clip", "run", "scale")
def command(invocation: Invocation) -> None:
    """Tag images with the classes that they show, from the class names alone, into WORK/tags.csv: a label file.

    Photos with a row in --labels calibrate the thresholds; no other labels are looked at.
    """
    from pipelines.stages import tag

    cams, tags = invocation.options("cams", CamsOptions), invocation.options("tag", TagOptions)
    superpixels = invocation.options("superpixels", SuperpixelsOptions)
    workspace = tag.unlabelled(replace(invocation.workspace, remembers=True))
    for words in (*workspace.dataset.understood, *workspace.dataset.classes.notes):
        err.print(f"[dim]{escape(words)}[/]")
    with ConsoleProgress() as progress:
        counts = launch(invocation, tag, workspace, superpixels, cams, tags, progress=progress)
    if invocation.shard is None:
        _print(tag.write_tags(workspace, cams, tags))
    then = "ssr tag" if invocation.shard else f"ssr masks --labels {shlex.quote(str(workspace.tags))}"
    print_outcome(counts, invocation.work, then, invocation)


def _print(made: Tags) -> None:
    values = sorted(made.thresholds.values())
    shown = f"{values[0]:.3f}" if values[0] == values[-1] else f"{values[0]:.3f} to {values[-1]:.3f}"
    out.print(f"[bold]{escape(str(made.path))}[/]: {made.tags:,} tags of {made.images:,} images, {made.untagged:,} without any")
    out.print(f"threshold {shown} ({escape(made.source)})")
    if made.expected is not None:
        worth = f"precision {100 * made.expected.precision:.1f} %, recall {100 * made.expected.recall:.1f} %"
        out.print(f"expected of further images, by the labels of {made.labelled:,}: {worth}")
