"""Map of image features in the plane, before and after alignment: a dot a sample, stars and crosses for prototypes.

Nothing here lays features out or measures them: it draws what it is given and touches neither pyplot's state nor a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

_INK, _MUTED, _FRAME, _SURFACE = "#22252b", "#5d636d", "#d5d7db", "#fafbfc"
_MARKERS = "os^Dv<h>pdP"
"""One shape a class besides its colour. Eleven: a number prime to the palette's period, so near colours differ in shape."""
_BOLD = FontProperties(weight="bold")
_DIRECTIONS = [np.array([np.cos(angle), np.sin(angle)]) for angle in np.arange(0, 2 * np.pi, np.pi / 12)]
_SIDE, _GAP, _MARGIN, _HEAD, _NOTE, _ROW = 6.4, 0.3, 0.15, 1.05, 0.6, 0.215  # inches


@dataclass(frozen=True)
class Marks:
    """Points of one kind.

    Attributes:
        points: ``(n, 2)``.
        classes: ``(n,)`` class indices; -1 belongs to no class.
    """

    points: NDArray[np.floating]
    classes: NDArray[np.integer]


@dataclass(frozen=True)
class FeaturePanel:
    """One side of the map.

    Attributes:
        title: Above it.
        note: Below it.
        samples: Image features, one a (photo, class) pair.
        text: Text prototypes.
        image: Image prototypes.
    """

    title: str
    note: str
    samples: Marks
    text: Marks
    image: Marks


def feature_map(
    before: FeaturePanel, after: FeaturePanel, names: Sequence[str], colours: NDArray[np.uint8], caption: str
) -> Figure:
    """Draw two panels side by side with one legend below.

    Args:
        before: Left; the legend lists its samples' classes.
        after: Right.
        names: Class names by index.
        colours: ``(C, 3)`` uint8 RGB by class index.
        caption: Below the title.

    Raises:
        ValueError: No samples.
    """
    present = np.unique(before.samples.classes).tolist()
    if not present:
        raise ValueError("a feature map needs at least one sample")
    columns = min(len(present) + 2, 10)
    rows = ceil((len(present) + 2) / columns)
    width = 2 * _SIDE + _GAP + 2 * _MARGIN
    bottom = _NOTE + _ROW * rows + _MARGIN
    height = _HEAD + _SIDE + bottom
    figure = Figure(figsize=(width, height), dpi=150)
    figure.text(_MARGIN / width, 1 - 0.15 / height, "Features before and after alignment",
                fontsize=14, fontweight="bold", color=_INK, va="top")  # fmt: skip
    figure.text(_MARGIN / width, 1 - 0.47 / height, caption, fontsize=9.5, color=_MUTED, va="top")
    for index, side in enumerate((before, after)):
        left = _MARGIN + index * (_SIDE + _GAP)
        axes = figure.add_axes((left / width, bottom / height, _SIDE / width, _SIDE / height))
        _draw(axes, side, names, colours / 255)
    figure.legend(
        handles=_handles(present, names, colours / 255), loc="lower center", ncols=columns, frameon=False, fontsize=9,
        labelcolor=_INK, handletextpad=0.2, columnspacing=1.2, bbox_to_anchor=(0.5, 0),
    )  # fmt: skip
    return figure


def _draw(axes: Axes, side: FeaturePanel, names: Sequence[str], colours: NDArray[np.float64]) -> None:
    samples, text, image = side.samples, side.text, side.image
    _frame(axes, np.concatenate([samples.points, text.points, image.points]))
    axes.set_title(side.title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_xlabel(side.note, loc="left", fontsize=10, color=_INK, labelpad=6)
    size = float(np.clip(9000 / len(samples.points), 12, 90))
    for index in np.unique(samples.classes).tolist():
        own = samples.points[samples.classes == index]
        axes.scatter(
            own[:, 0], own[:, 1], s=size, marker=_marker(index), color=colours[index],
            alpha=0.75, linewidths=0.4, edgecolors="white", zorder=2,
        )  # fmt: skip
    halo = [withStroke(linewidth=3.6, foreground="white")]
    for point, index in zip(image.points, image.classes.tolist(), strict=True):
        colour = colours[index] if index >= 0 else _INK
        axes.plot(*point, marker="x", markersize=7, markeredgewidth=1.8, color=colour, path_effects=halo, zorder=3)
    for point, index in zip(text.points, text.classes.tolist(), strict=True):
        axes.plot(*point, marker="*", markersize=15, color=colours[index], markeredgecolor="white", zorder=4)
    _name(axes, text, samples.points, names)


def _frame(axes: Axes, points: NDArray[np.floating]) -> None:
    """Limits around all points, each direction at its own scale, no ticks: a map's coordinates mean nothing."""
    low, high = points.min(axis=0), points.max(axis=0)
    half, middle = 0.6 * np.maximum(high - low, 1e-3 * max(float((high - low).max()), 1e-6)), (low + high) / 2
    axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
    axes.set_ylim(middle[1] - half[1], middle[1] + half[1])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor(_SURFACE)
    axes.spines[:].set_color(_FRAME)


def _name(axes: Axes, text: Marks, dots: NDArray[np.floating], names: Sequence[str]) -> None:
    """Write class names beside their stars, off one another and over as little as can be; a line leads to those further off."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    origin, scale = np.array([left, low]), 72 * _SIDE / np.array([right - left, high - low])  # points of type a unit
    stars, dots = scale * (text.points - origin), scale * (dots - origin)  # (n, 2), from the lower left corner
    outwards = stars - stars.mean(axis=0)  # (n, 2)
    outwards /= np.maximum(np.linalg.norm(outwards, axis=1, keepdims=True), 1e-9)
    size = 9 if len(stars) <= 30 else 7.5
    centres, halves = stars.copy(), np.full_like(stars, 6.0)  # of boxes that are taken: the stars, then names
    lines = np.empty((0, 2))  # points along the lines drawn
    for place, star in enumerate(stars):
        name = names[text.classes[place]]
        half = np.array([TextPath((0, 0), name, size, prop=_BOLD).get_extents().width / 2 + 2, size * 2 / 3])
        best, least, line = star + np.array([0, 14]), np.inf, lines[:0]
        for away in (0, 10, 20, 32, 46, 62, 80, 100, 130, 160):
            for direction in _DIRECTIONS:
                rim = (half / np.maximum(abs(direction), 1e-9)).min()  # of the box, from its centre
                centre = star + direction * (rim + 8 + away)
                if (centre < half).any() or (centre > 72 * _SIDE - half).any():
                    continue
                if (abs(centres - centre) < halves + half).all(axis=1).any():
                    continue
                covered = (abs(dots - centre) < half + 3).all(axis=1).sum() + (abs(lines - centre) < half).all(axis=1).sum()
                drawn = star + np.arange(8, 8 + away, 4)[:, None] * direction if away else lines[:0]  # (p, 2)
                crossed = (abs(drawn[:, None] - centres) < halves).all(axis=2).sum()
                crossed += (abs(drawn[:, None] - lines) < 3).all(axis=2).sum()
                cost = away / 8 + covered + 3 * crossed + 2 * (1 - direction @ outwards[place])
                if cost < least:
                    best, least, line = centre, cost, drawn
        centres, halves, lines = np.vstack([centres, best]), np.vstack([halves, half]), np.vstack([lines, line])
        axes.annotate(
            name, tuple(text.points[place]), tuple(origin + best / scale), ha="center", va="center", fontsize=size,
            fontweight="bold", color=_INK, zorder=6, path_effects=[withStroke(linewidth=2.6, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": _MUTED, "linewidth": 0.7, "shrinkB": 4} if len(line) else None,
        )  # fmt: skip


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def _handles(present: Sequence[int], names: Sequence[str], colours: NDArray[np.float64]) -> list[Line2D]:
    def handle(marker: str, colour: str, label: str, size: float) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, label=label, markersize=size, markeredgewidth=size / 6)

    of_classes = [handle(_marker(index), to_hex(colours[index]), names[index], 6) for index in present]
    return [*of_classes, handle("*", _MUTED, "text prototype", 10), handle("x", _MUTED, "image prototype", 7)]
