"""The course of a training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipelines.evaluation.figures import save_figure


def curves_figure(lines: Sequence[dict[str, Any]], path: Path, labels: Mapping[str, str]) -> None:
    """Losses, and validation scores beside them where there are any.

    Args:
        lines: Of `pipelines.training.curves.Curves`.
        path: The PNG.
        labels: Losses to draw: key of a line -> what it is called. One that is 0 throughout is left out.
    """
    steps = [line for line in lines if not labels.keys().isdisjoint(line)]
    scores = [line for line in lines if "val_miou" in line]
    figure = Figure(figsize=(10 if scores else 6, 3.5), layout="constrained")
    left, *right = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for key, label in labels.items():
        if any(line.get(key) for line in steps):
            left.plot([line["iteration"] for line in steps], [line.get(key) for line in steps], label=label)
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    if left.lines:
        left.legend(frameon=False)
    for axis in right:
        axis.plot([line["iteration"] for line in scores], [100 * line["val_miou"] for line in scores], marker="o")
        axis.set(xlabel="step", ylabel="validation mIoU, %")
    for axis in (left, *right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
