"""``ssr eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipelines.errors import UsageError
from pipelines.options.stages import EvalOptions, RefineOptions
from pipelines.workdir.commands import command_for
from ssr_cli.console import EXIT_PARTLY, ConsoleProgress, err, next_step, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import launch

if TYPE_CHECKING:
    from pipelines.evaluation.report import Report
    from pipelines.stages.evaluate import Evaluation


@command_with("eval", "dataset", "run", "scale")
def command(
    invocation: Invocation,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="What to score: cams, refined, masks, predictions, retrained, ablation, or a folder of PNGs.",
            show_default=True,
            autocompletion=lambda: ["cams", "refined", "masks", "predictions", "retrained", "ablation"],
        ),
    ] = "masks",
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Show two runs side by side: work directories, eval folders or report.json."),
    ] = None,
) -> None:
    """Score CAMs, pseudo-masks or any folder of PNGs against ground truth (opens it)."""
    if compare is not None:
        _compare(*compare, what)
        return
    if "background_power" in invocation.flags.get("eval", {}) and what not in {"cams", "refined", "ablation"}:
        made = "--background-power changes label maps that are made from CAMs"
        raise UsageError(f"{made}; {what} are label maps already", "ssr eval refined, or ssr refine")
    options = invocation.options("eval", EvalOptions)
    power = options.background_power or invocation.options("refine", RefineOptions).background_power
    if what == "ablation":
        _ablation(invocation, options, power)
        return
    from pipelines.stages import evaluate
    from pipelines.stages.status import status

    with ConsoleProgress() as progress:
        evaluations = launch(invocation, evaluate, invocation.workspace, what, options, power, progress=progress)
    if invocation.shard is not None:
        out.print(f"counts of shard {invocation.shard} are kept")
        next_step(f"{command_for(invocation.work, 'ssr merge')}, once all {invocation.shard.count} shards are done")
        return
    for evaluation in evaluations:
        print_evaluation(evaluation)
    then = status(invocation.work).next_command if what == "masks" else command_for(invocation.work, "ssr report")
    next_step(then)
    if evaluations[0].failed:
        err.print(
            f"[yellow]{evaluations[0].failed} images left out, listed in {escape(str(invocation.work / 'failures.jsonl'))}[/]"
        )
        raise typer.Exit(EXIT_PARTLY)


def _ablation(invocation: Invocation, options: EvalOptions, power: float) -> None:
    from pipelines.stages import ablation

    with ConsoleProgress() as progress:
        rows = ablation.score(invocation.workspace, options, power, progress)
    first = rows[0][1]
    table = Table(title=escape(f"ablation · split {first.split} · {first.images:,} images"), title_justify="left")
    table.add_column("row")
    for column in ("mIoU", "gain", "precision", "recall"):
        table.add_column(column, justify="right")
    before: float | None = None
    for title, report in rows:
        gain = "" if before is None or report.split != first.split else f"{100 * (report.miou - before):+.2f}"
        table.add_row(escape(title), _percent(report.miou), gain, _percent(report.precision), _percent(report.recall))
        before = report.miou
    out.print(table)
    _print_warnings(first)
    next_step(command_for(invocation.work, "ssr report"))


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the table of an evaluation."""
    report, metrics = evaluation.report, evaluation.metrics
    table = Table(title=escape(report.caption), title_justify="left")
    table.add_column("class")
    for column in ("IoU", "precision", "recall"):
        table.add_column(column, justify="right")
    for name, iou in metrics.per_class_iou.items():
        if iou is not None:
            table.add_row(
                name, _percent(iou), _percent(metrics.per_class_precision[name]), _percent(metrics.per_class_recall[name])
            )
    table.add_section()
    table.add_row("[bold]mean", f"[bold]{_percent(report.miou)}", _percent(report.precision), _percent(report.recall))
    out.print(table)
    confusion = "-" if report.confusion_ratio is None else f"{report.confusion_ratio:.3f}"
    out.print(f"mIoU {_percent(report.miou)}   pixel accuracy {_percent(report.pixel_accuracy)}   FP/TP {confusion}")
    if report.coverage < 1:
        out.print(
            f"coverage {_percent(report.coverage)}: 255 counts as a miss, left out mIoU is {_percent(report.miou_covered)}"
        )
    _print_warnings(report)
    for name, rule in report.rules.items():
        out.print(f"[dim]{name}: {escape(rule)}[/]")
    out.print(f"[dim]options digest {report.options_digest}; {escape(str(evaluation.folder / 'report.json'))}[/]")


def _print_warnings(*reports: Report) -> None:
    """Each warning once, beside the score, so that no one copies the one without the other."""
    for warning in dict.fromkeys(warning for report in reports for warning in report.warnings):
        out.print(f"[yellow]warning: {escape(warning)}[/]")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _compare(first: Path, second: Path, what: str) -> None:
    from pipelines.evaluation.figures import compare_figure, save_figure
    from pipelines.evaluation.report import read_report

    places = _report_path(first, what), _report_path(second, what)
    a, b = (read_report(place) for place in places)
    table = Table(
        title="A: " + escape(f"{first}: {a.caption}") + "\nB: " + escape(f"{second}: {b.caption}"), title_justify="left"
    )
    table.add_column("class")
    for column in ("A", "B", "B - A"):
        table.add_column(column, justify="right")
    for name, before, after in _rows(a, b):
        gain = None if before is None or after is None else after - before
        colour = "" if gain is None or abs(gain) < 5e-5 else "[green]" if gain > 0 else "[red]"
        table.add_row(name, _percent(before), _percent(after), "-" if gain is None else f"{colour}{100 * gain:+.2f}")
    out.print(table)
    _print_warnings(a, b)
    if a.per_class_iou.keys() != b.per_class_iou.keys() or (a.split, a.images) != (b.split, b.images):
        out.print("[yellow]warning: A and B differ in their classes or images, so their means cannot be compared[/]")
    picture = places[1].parent / "compare.png"
    save_figure(compare_figure(a, b, (str(first), str(second))), picture)
    out.print(f"[dim]{escape(str(picture))}[/]")


def _rows(a: Report, b: Report) -> list[tuple[str, float | None, float | None]]:
    both = [(n, a.per_class_iou.get(n), b.per_class_iou.get(n)) for n in dict.fromkeys([*a.per_class_iou, *b.per_class_iou])]
    rows: list[tuple[str, float | None, float | None]] = [row for row in both if row[1:] != (None, None)]
    return [*rows, ("mIoU", a.miou, b.miou), ("precision", a.precision, b.precision), ("recall", a.recall, b.recall)]


def _report_path(path: Path, what: str) -> Path:
    of_splits = sorted(path.glob(f"eval/{what}-*/report.json")) if what in {"predictions", "retrained"} else []
    if len(of_splits) > 1:
        names = ", ".join(found.parent.name for found in of_splits)
        raise UsageError(f"{path} has several reports: {names}", f"ssr eval {of_splits[0].parent.name} --compare A B")
    for candidate in (path, path / "report.json", path / "eval" / what / "report.json", *of_splits):
        if candidate.is_file():
            return candidate
    hint = f"give a work directory with `ssr eval {what}` done, an eval folder or a report.json"
    raise UsageError(f"no report of {what} at {path}", hint)
