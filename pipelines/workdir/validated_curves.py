"""Curves of a training that is scored on a validation split, with their figure and the best model so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.execution.progress import Progress
from pipelines.training.curves import Curves


class ValidatedCurves(Curves):
    """``curves.jsonl`` and ``curves.png`` of a folder.

    Args:
        folder: Folder of the training.
        labels: Labels of the losses that are drawn, by key of a line.
    """

    def __init__(self, folder: Path, labels: Mapping[str, str]) -> None:
        super().__init__(folder / "curves.jsonl")
        self.labels = labels

    def is_scored(self, iteration: int, split: str | None) -> bool:
        """Return whether a line holds the score of a step's model on a split."""
        return any((line["iteration"], line.get("val_split")) == (iteration, split) for line in self.lines)

    def score(self, iteration: int, split: str, miou: float, how: str, write_best: Callable[[], None], told: Progress) -> None:
        """Store a score; the best model so far is kept.

        Args:
            iteration: Steps of the model.
            split: Split of the score.
            miou: Score in [0, 1].
            how: How it was scored, for the log.
            write_best: Writes the model; called before the score is written, so that after a kill in between it is scored
                again.
            told: Progress that shows the score.
        """
        key = (iteration, split)  # a resumed training may score a step again
        self.lines = [line for line in self.lines if (line["iteration"], line.get("val_split")) != key]
        earlier = [float(line["val_miou"]) for line in self.lines if line.get("val_split") == split]
        best = miou > max(earlier, default=-1.0)
        if best:
            write_best()
        self.write({"iteration": iteration, "val_miou": miou, "val_split": split})
        self.save()
        told.status(f"mIoU {100 * miou:.2f} on {split} ({how}){', best so far' * best}")

    def save(self) -> None:
        """Write figure and file; the file last, because a recorded validation is not repeated on resume."""
        from pipelines.figures.curves import curves_figure  # here, because a finished training draws nothing

        curves_figure(self.lines, self.path.with_suffix(".png"), self.labels)
        self.flush()
