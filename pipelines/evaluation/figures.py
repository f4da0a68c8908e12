"""Figures of an evaluation: confusion matrix, IoU of the classes, and two runs side by side.

Every function returns a new `matplotlib.figure.Figure`; none uses pyplot's state or a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.evaluation.report import Report
from pipelines.stores.files import atomic_path

T = TypeVar("T")
_INK, _MUTED, _GRID = "#22252b", "#7b818c", "#e3e5e9"
_BETTER, _WORSE = "#1b7f4d", "#b3362b"
_HALO = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
_BARS_A_COLUMN = 42
_ANNOTATED_CLASSES = 30


def confusion_figure(counts: NDArray[np.int64], report: Report) -> Figure:
    """Draw the row-normalised confusion matrix, which shows the predictions for the pixels of each class.

    Args:
        counts: ``(C, C + 1)`` of `confusion_counts`; the last column is drawn if it is not zero.
        report: Report with class names and caption.
    """
    names = list(report.per_class_iou)
    classes = len(names)
    columns = names if not counts[:, -1].any() else [*names, "255 (ignore)"]
    pixels = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, pixels, out=np.full(counts.shape, np.nan), where=pixels > 0)[:, : len(columns)]

    annotated = classes <= _ANNOTATED_CLASSES
    cell = 0.42 if annotated else 0.155
    figure = Figure(
        figsize=(max(4.0, cell * len(columns)) + 2.7, max(3.6, cell * classes) + (2.2 if annotated else 3)), dpi=150
    )
    axes = figure.subplots()
    colors = mpl.colormaps["magma"].with_extremes(bad="#d5d7db")
    norm = PowerNorm(0.5, 0, 1)  # the square root shows 1 % beside a diagonal of 90 %
    picture = axes.imshow(np.ma.masked_invalid(share), cmap=colors, norm=norm, interpolation="nearest", aspect="auto")
    size = 9 if annotated else 7
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
    axes.set_yticks(range(classes), names, fontsize=size)
    for label, row in zip(axes.get_yticklabels(), pixels[:, 0], strict=True):
        label.set_color(_INK if row else _MUTED)
    axes.set_xlabel("predicted", fontsize=11, color=_INK)
    axes.set_ylabel("ground truth", fontsize=11, color=_INK)
    axes.tick_params(length=0, labeltop=not annotated)
    axes.spines[:].set_visible(False)
    if annotated:
        _write_shares(axes, share)
    else:
        for edge in range(10, classes, 10):  # thin lines guide from a cell to its names
            axes.axhline(edge - 0.5, color="white", linewidth=0.3, alpha=0.5)
            axes.axvline(edge - 0.5, color="white", linewidth=0.3, alpha=0.5)
    slot = axes.inset_axes((1.02, 0.2, 0.015, 0.6))
    bar = figure.colorbar(picture, cax=slot, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "10 %", "25 %", "50 %", "75 %", "100 %"], fontsize=8)
    bar.set_label("share of the class's ground-truth pixels (square-root scale)", fontsize=9, color=_INK)
    bar.outline.set_visible(False)
    _title(figure, "Confusion matrix", report.caption + ("  ·  grey rows: not in ground truth" if not pixels.all() else ""))
    return figure


def _write_shares(axes: Axes, share: NDArray[np.float64]) -> None:
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.005:  # a lower value would be written as "0"
            color = "#1a1020" if value > 0.45 else "white"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7.5, color=color)


def iou_figure(report: Report) -> Figure:
    """Draw the IoU of every class in the ground truth, best first, with a line at the mIoU."""
    values = {name: value for name, value in report.per_class_iou.items() if value is not None}
    order = sorted(values, key=lambda name: -values[name])
    figure, columns = _bar_columns(len(order), row=0.235)
    colors = mpl.colormaps["viridis"]
    norm = Normalize(0, 1.05)  # keeps the lightest yellow off the white background
    for axes, names in zip(columns, _chunks(order, len(columns)), strict=True):
        ious = np.array([values[name] for name in names])
        axes.barh(range(len(names)), ious, height=0.74, color=colors(norm(ious)))
        axes.axvline(report.miou, color=_WORSE, linewidth=1.2, linestyle=(0, (4, 3)), zorder=3)
        for place, value in enumerate(ious):
            axes.text(value + 0.012, place, f"{100 * value:.1f}", va="center", fontsize=8.5, color=_INK, bbox=_HALO, zorder=4)
        _dress_bars(axes, names, best=values[order[0]])
    note = f"{report.caption}\nmIoU {100 * report.miou:.2f} % over {len(order)} classes (dashed line)"
    absent = len(report.per_class_iou) - len(order)
    _title(figure, "IoU per class", note + (f"; {absent} not in ground truth" if absent else ""))
    return figure


def compare_figure(a: Report, b: Report, labels: tuple[str, str] = ("A", "B")) -> Figure:
    """Draw the IoU of every class in two runs, side by side, in order of b's gain over a.

    Args:
        a: Report of the first run.
        b: Report of the second run.
        labels: Names of the runs in the figure.

    Raises:
        ValueError: No class was scored in both runs.
    """
    both = [
        (name, first, second)
        for name, first in a.per_class_iou.items()
        if first is not None and (second := b.per_class_iou.get(name)) is not None
    ]
    if not both:
        raise ValueError("the two reports have no scored class in common")
    both.sort(key=lambda item: item[1] - item[2])
    figure, columns = _bar_columns(len(both), row=0.33)
    for axes, rows in zip(columns, _chunks(both, len(columns)), strict=True):
        place = np.arange(len(rows))
        firsts, seconds = np.array([row[1:] for row in rows]).T
        axes.barh(place - 0.2, firsts, height=0.36, color="#a9b4c6", label=labels[0])
        axes.barh(place + 0.2, seconds, height=0.36, color="#2f5d9e", label=labels[1])
        for row, (_, first, second) in enumerate(rows):
            gain = 100 * (second - first)
            color = _MUTED if abs(gain) < 0.05 else _BETTER if gain > 0 else _WORSE
            axes.text(max(first, second) + 0.012, row, f"{gain:+.1f}", va="center", fontsize=8.5, color=color, bbox=_HALO)
        _dress_bars(axes, [row[0] for row in rows], best=max(max(row[1:]) for row in both))
    gain = 100 * (b.miou - a.miou)
    lines = [f"{label}: mIoU {100 * run.miou:.2f} %  ·  {run.caption}" for label, run in zip(labels, (a, b), strict=True)]
    _title(figure, f"IoU per class: {labels[0]} and {labels[1]}  ({gain:+.2f} mIoU)", "\n".join(lines))
    figure.legend(*columns[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; a failure leaves no partial file."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def _bar_columns(bars: int, row: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with the number of columns that makes it about as wide as high."""
    columns = max(1, ceil(bars / _BARS_A_COLUMN))
    height = max(2.5, row * ceil(bars / columns)) + 1.5
    figure = Figure(figsize=(7.5 if columns == 1 else 5.6 * columns, height), dpi=150)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _chunks(items: Sequence[T], count: int) -> list[Sequence[T]]:
    size = ceil(len(items) / count)
    return [items[start : start + size] for start in range(0, size * count, size)]


def _dress_bars(axes: Axes, names: Sequence[str], best: float) -> None:
    top = max(1, ceil(best / 0.2))  # in steps of 20 %
    axes.set_yticks(range(len(names)), names, fontsize=9.5, color=_INK)
    axes.set_xlim(0, 0.2 * top * 1.1)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xticks(0.2 * np.arange(top + 1), [f"{20 * step}" for step in range(top + 1)], fontsize=8.5, color=_MUTED)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_xlabel("IoU (%)", fontsize=9.5, color=_INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _title(figure: Figure, title: str, caption: str) -> None:
    """Put title and caption at the top left, and keep that space free in the layout."""
    width, height = figure.get_size_inches()
    head = 0.5 + 0.18 * (caption.count("\n") + 1)  # inches
    figure.text(0.15 / width, 1 - 0.15 / height, title, fontsize=14, fontweight="bold", color=_INK, va="top")
    figure.text(0.15 / width, 1 - 0.47 / height, caption, fontsize=9.5, color=_MUTED, va="top", linespacing=1.35)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1, rect=(0, 0, 1, 1 - head / height))
