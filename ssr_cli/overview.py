"""Overview that ``ssr`` prints without a command: the stages in order and the state of the work directories."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from pipelines.errors import SsrError
from ssr_cli.console import next_step, out

if TYPE_CHECKING:
    from pipelines.stages.status import WorkStatus

RUNS = Path("runs")

FIRST_COMMANDS = {
    "ssr sample": "a small synthetic dataset with masks, to try every command on",
    "ssr init": "your own photos: write a config for them, with questions",
    "ssr doctor voc --root VOCdevkit/VOC2012": "your own data (voc, coco or folder): check that a run has all that it needs",
}
"""Commands to begin with if there is no work directory."""

WRITES = {"eval": "eval/*/report.json"}
"""Output of a stage whose help does not name it."""

TO_LOOK_AT = {
    "report.html": "scores, ablation and pictures on one page, for a browser",
    "show/index.html": "pictures of every step, for a browser",
    "review/index.html": "the most doubtful masks, to mark",
    "masks": "pseudo-masks as PNG: 0 is background, 1 the first class",
    "model.safetensors": "the trained model, for ssr predict --images FOLDER",
    "predictions": "label maps of that model",
}
"""Outputs of a work directory that are for people, the page of everything first."""

NARROW = 120
"""Columns of a terminal below which the states of a work directory take the place of what each stage does."""

OWN_PHOTOS = "ssr init --root FOLDER"
"""First command for photos of one's own."""


def print_overview(commands: Mapping[str, str]) -> None:
    """Print the stages in order. The state of a single work directory stands beside them; several get a line each.

    Args:
        commands: Command -> help; the help of a stage is ``NUMBER  what it does -> what it writes``.
    """
    works = sorted({path.parent for path in (*RUNS.glob("*/work.json"), *RUNS.glob("*/sample.toml"))})
    statuses = {work: _read_status(work) for work in works}
    single = next(iter(statuses.values())) if len(statuses) == 1 else None
    states = {} if single is None or isinstance(single, SsrError) else _states(single)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in commands.items():
        if stage := re.match(r"(\d+) +(.*?)(?: -> (.*))?$", text):
            number, what, writes = stage.groups(default="")
            cells = [number, f"[bold]ssr {name}[/]", escape(what), escape(writes or WRITES.get(name, "")), states.get(name, "")]
            table.add_row(*(cells[:2] + cells[3:] if states and out.width < NARROW else cells))
    out.print("[bold]From images and class names to pseudo-masks[/]\n")
    out.print(table)
    others = ", ".join(name for name, text in commands.items() if not re.match(r"\d", text))
    out.print(f"\n[dim]also: {others}; ssr --help describes each, ssr COMMAND --help lists its flags[/]\n")
    for work, status in statuses.items():
        name = f"[bold]{escape(str(work))}[/]"
        if isinstance(status, SsrError):
            out.print(f"{name}: [red]error:[/] {escape(str(status))}")
        elif status is single:
            begun = any(output.total for output in status.outputs)
            out.print(f"{name}: {escape(f'{status.dataset}; recipe {status.recipe}' if begun else 'not begun')}")
            for path, what in TO_LOOK_AT.items():
                if (work / path).exists():
                    out.print(f"  [bold]{escape(str(work / path))}[/]  [dim]{what}[/]")
            next_step(_next_command(work, status))
        else:
            out.print(f"{name}: {_summary(status)}; [dim]next:[/] {escape(_next_command(work, status))}")
    if statuses:
        out.print(f"[dim]your own photos:[/] [bold]{OWN_PHOTOS}[/] [dim]writes a config for them and names the next command[/]")
    else:
        out.print(f"no work directory under {RUNS}/ yet; begin with")
        for command, what in FIRST_COMMANDS.items():
            out.print(f"  [bold]{command}[/]  [dim]{what}[/]")


def _read_status(work: Path) -> WorkStatus | SsrError:
    from pipelines.stages.status import status

    try:
        return status(work)
    except SsrError as error:
        return error
    except Exception as error:  # a damaged directory must not hide the others
        return SsrError(f"unexpected {type(error).__name__}: {error}".splitlines()[0], f"ssr status --work {work} --debug")


def _next_command(work: Path, status: WorkStatus) -> str:
    sample = work / "sample.toml"
    if sample.is_file() and not any(output.total for output in status.outputs):  # the work directory has no config yet
        return f"ssr superpixels --config {shlex.quote(str(sample))}"
    return status.next_command


def _states(status: WorkStatus) -> dict[str, str]:
    """Command -> state of its output; of several outputs, the least complete one."""
    states: dict[str, str] = {}
    for output in sorted(status.outputs, key=lambda output: output.complete):
        command = output.made_by.split()[1]
        colour = "green" if output.complete and not output.failed else "yellow" if output.total else "dim"
        images = f"{output.images}/{output.total} " if output.total else ""
        states.setdefault(command, f"[{colour}]{images}{output.state}[/]")
    if status.reports:
        states["eval"] = f"[green]{', '.join(_scores(status))}[/]"
    return states


def _scores(status: WorkStatus) -> Iterator[str]:
    for report in status.reports:
        yield escape(f"{report.what} mIoU {100 * report.miou:.2f}")


def _summary(status: WorkStatus) -> str:
    """Dataset, state of the last output that was begun, and scores."""
    begun = [output for output in status.outputs if output.total]
    if not begun:
        return "not begun"
    last, dataset = begun[-1], " ".join(status.dataset.split(", ")[:2])
    return escape("; ".join([dataset, f"{last.name} {last.images}/{last.total} {last.state}", *_scores(status)]))
