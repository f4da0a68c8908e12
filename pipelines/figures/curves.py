"""The course of a training as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipelines.evaluation.figures import save_figure

LOSSES = {"segmentation": "cross-entropy", "auxiliary": "auxiliary head", "affinity": "affinity loss"}
"""Key of a line -> what it is called."""


def curves_figure(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses, and validation scores beside them where there are any.

    Args:
        lines: Of `pipelines.training.curves.Curves`.
        path: The PNG.
    """
    steps = [line for line in lines if "segmentation" in line]
    scores = [line for line in lines if "val_miou" in line]
    figure = Figure(figsize=(10 if scores else 6, 3.5), layout="constrained")
    left, *right = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for key, label in LOSSES.items():
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
