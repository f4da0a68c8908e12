"""Scores as sections of the HTML page: the ablation, one evaluation with its classes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from pipelines.evaluation.report import Report
from pipelines.figures.panel import RGB


def ablation_section(scores: Sequence[tuple[str, Report]]) -> str:
    """The table of the rows: mIoU, gain over the row before, precision, recall, a bar."""
    rows = []
    before: float | None = None
    first = scores[0][1]
    for title, report in scores:
        gain = "" if before is None or report.split != first.split else f"{100 * (report.miou - before):+.2f}"
        rows.append(
            f"<tr><td>{escape(title)}</td>{_number(report.miou)}<td class=n>{gain}</td>{_number(report.precision)}"
            f"{_number(report.recall)}{_bar(report.miou)}</tr>"
        )
        before = report.miou
    return (
        f"<section><h2>Ablation</h2><p>split {escape(first.split)}, {first.images:,} images; values in %</p><table>"
        "<tr><th>row<th class=n>mIoU<th class=n>gain<th class=n>precision<th class=n>recall<th></tr>"
        f"{''.join(rows)}</table>{_warnings(report for _, report in scores)}</section>"
    )


def report_section(report: Report, confusion_png: bytes | None, colors: Mapping[str, RGB]) -> str:
    """One evaluation: its head line; folded, IoU of each class as bars, how it was scored, the confusion matrix."""
    rows = [
        f"<tr><td>{escape(name)}</td>{_number(iou)}{_bar(iou, colors.get(name))}</tr>"
        for name, iou in report.per_class_iou.items()
        if iou is not None
    ]
    rules = "<br>".join(f"{escape(name)}: {escape(rule)}" for name, rule in report.rules.items())
    picture = ""
    if confusion_png:
        data = b64encode(confusion_png).decode()
        picture = f'<img src="data:image/png;base64,{data}" alt="confusion matrix">'
    return (
        f"<section><h2>{escape(report.caption)}: mIoU {100 * report.miou:.2f}</h2>"
        f"{_warnings([report])}<p>split {escape(report.split)}, {report.images:,} images</p>"
        "<details><summary>classes and rules</summary>"
        f"<div><table>{''.join(rows)}</table>{picture}</div><p>{rules}</p></details></section>"
    )


def _warnings(reports: Iterable[Report]) -> str:
    found = dict.fromkeys(warning for report in reports for warning in report.warnings)
    return "".join(f"<p><b>warning</b>: {escape(warning)}</p>" for warning in found)


def _number(value: float | None) -> str:
    return f"<td class=n>{'-' if value is None else f'{100 * value:.2f}'}</td>"


def _bar(value: float | None, color: RGB | None = None) -> str:
    tint = "" if color is None else ";background:rgb({},{},{})".format(*map(int, color))
    return f'<td class=bar><i style="width:{100 * (value or 0):.1f}%{tint}"></i></td>'
