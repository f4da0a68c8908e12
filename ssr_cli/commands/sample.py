"""``ssr sample``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from pipelines.options.stages import SampleOptions
from ssr_cli.console import ConsoleProgress, next_step, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with

DEFAULT_WORK = Path("runs/sample")


@command_with("sample")
def command(invocation: Invocation) -> None:
    """Draw a small synthetic dataset with masks into WORK (default: runs/sample), with a config that runs every stage on it."""
    from pipelines.stages import sample

    work = invocation.work_flag or DEFAULT_WORK
    invocation = replace(invocation, work_flag=work)
    with ConsoleProgress() as progress:
        sample.run(work, invocation.options("sample", SampleOptions), invocation.force, progress)
    dataset, config = work / "dataset", work / sample.CONFIG
    out.print(f"images, labels and masks in [bold]{escape(str(dataset))}[/], config [bold]{escape(str(config))}[/]")
    next_step(f"ssr superpixels --config {shlex.quote(str(config))}")
