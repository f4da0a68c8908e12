"""What ``ssr`` says without a command: the stages in order, and where the work directories stand."""

from __future__ import annotations

import re
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

BEGIN = {
    "ssr sample": "a small drawn dataset with masks, to try everything on",
    "ssr doctor voc --root VOCdevkit/VOC2012": "your own data: is all there that a run needs? (voc, coco or folder)",
}
"""How to begin, where there is nothing yet."""

WRITES = {"eval": "eval/*/report.json"}
"""What a stage writes, where its help does not say."""


def show_way(commands: Mapping[str, str]) -> None:
    """Print the stages, and beside them the state of the one work directory under ``runs``, or a line for each of several.

    Args:
        commands: The table of commands; the help of a stage is ``NUMBER  what it does -> what it writes``.
    """
    works = sorted({path.parent for path in (*RUNS.glob("*/work.json"), *RUNS.glob("*/sample.toml"))})
    standing = {work: _look(work) for work in works}
    only = next(iter(standing.values())) if len(standing) == 1 else None
    state = {} if only is None or isinstance(only, SsrError) else _states(only)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in commands.items():
        if stage := re.match(r"(\d+) +(.*?)(?: -> (.*))?$", text):
            number, what, writes = stage.groups(default="")
            table.add_row(
                number, f"[bold]ssr {name}[/]", escape(what), escape(writes or WRITES.get(name, "")), state.get(name, "")
            )
    out.print("[bold]From photos and class names to pseudo-masks[/]\n")
    out.print(table)
    others = ", ".join(name for name, text in commands.items() if not re.match(r"\d", text))
    out.print(f"\n[dim]also: {others}; ssr --help says what each is for, ssr COMMAND --help its flags[/]\n")
    for work, found in standing.items():
        if isinstance(found, SsrError):
            out.print(f"[bold]{escape(str(work))}[/]: [red]error:[/] {escape(str(found))}")
        elif found is only:
            about = f"{found.dataset}; recipe {found.recipe}" if any(output.total for output in found.outputs) else "not begun"
            out.print(f"[bold]{escape(str(work))}[/]: {escape(about)}")
            next_step(_next(work, found))
        else:
            out.print(f"[bold]{escape(str(work))}[/]: {_far(found)}; [dim]next:[/] {escape(_next(work, found))}")
    if not standing:
        out.print(f"no work directory under {RUNS}/ yet; begin with")
        for command, what in BEGIN.items():
            out.print(f"  [bold]{command}[/]  [dim]{what}[/]")


def _look(work: Path) -> WorkStatus | SsrError:
    from pipelines.stages.status import status

    try:
        return status(work)
    except SsrError as error:
        return error
    except Exception as error:  # a damaged directory must not hide the others
        return SsrError(f"unexpected {type(error).__name__}: {error}".splitlines()[0], f"ssr status --work {work} --debug")


def _next(work: Path, found: WorkStatus) -> str:
    drawn = work / "sample.toml"
    if drawn.is_file() and not any(output.total for output in found.outputs):  # the config is not remembered yet
        return f"ssr superpixels --config {drawn}"
    return found.next_command


def _states(found: WorkStatus) -> dict[str, str]:
    """Command -> how far its outputs are; of several, the one that is behind."""
    from pipelines.stages.status import OUTPUTS

    said: dict[str, str] = {}
    for output in sorted(found.outputs, key=lambda output: output.complete):
        command = OUTPUTS[output.name].removeprefix("ssr ")
        colour = "green" if output.complete and not output.failed else "yellow" if output.total else "dim"
        images = f"{output.images}/{output.total} " if output.total else ""
        said.setdefault(command, f"[{colour}]{images}{output.state}[/]")
    if found.reports:
        said["eval"] = f"[green]{', '.join(_scores(found))}[/]"
    return said


def _scores(found: WorkStatus) -> Iterator[str]:
    for report in found.reports:
        yield escape(f"{report.what} mIoU {100 * report.miou:.2f}")


def _far(found: WorkStatus) -> str:
    """Dataset, the last output that was begun and the scores, in a few words."""
    begun = [output for output in found.outputs if output.total]
    if not begun:
        return "not begun"
    last, dataset = begun[-1], " ".join(found.dataset.split(", ")[:2])
    return escape("; ".join([dataset, f"{last.name} {last.images}/{last.total} {last.state}", *_scores(found)]))
