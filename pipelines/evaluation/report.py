"""Report of one evaluation: what was scored, by which rules, and with which metrics.

It is stored as ``report.json``, beside a CSV table of the classes and the confusion counts as ``.npy``. Each file is written in
full and then renamed.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from pipelines.errors import SsrError
from pipelines.evaluation.metrics import Metrics
from pipelines.stores.files import atomic_path

Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Report:
    """Report of one evaluation. Values are fractions, None = undefined.

    Attributes:
        what: What was scored, ``cams``, ``refined``, ``masks`` or a folder.
        split: Name of the split.
        images: Number of images scored.
        oracle: Whether the background exponent was chosen on ground truth.
        background_power: Exponent p of the background score ``(1 - max cam)^p``; None for label maps.
        boundary: Boundary refinement of the label maps, such as ``crf`` or ``none``; None if unknown.
        options_digest: Digest of the options that made the scored output.
        rules: Scoring rules in words, see `rules`.
        confusion_matrix: File name of the counts beside the report.
        warnings: Warnings that make the score doubtful, see `Plausibility.warnings`.

    The metrics are those of `Metrics.summary`.
    """

    what: str
    split: str
    images: Annotated[int, Field(ge=1)]
    miou: Fraction
    miou_covered: Fraction | None
    pixel_accuracy: Fraction
    precision: Fraction | None
    recall: Fraction
    confusion_ratio: Annotated[float, Field(ge=0)] | None
    classes_never_hit: Annotated[int, Field(ge=0)]
    coverage: Fraction
    per_class_iou: dict[str, Fraction | None]
    options_digest: str
    boundary: str | None = None
    background_power: float | None = None
    oracle: bool = False
    rules: dict[str, str] = field(default_factory=dict)
    confusion_matrix: str | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that an oracle report has its exponent."""
        if self.oracle and self.background_power is None:
            raise ValueError("an oracle report must say its background_power")

    @property
    def caption(self) -> str:
        """One line above a table or figure: output, split, images, refinement, background rule, supervision."""
        parts = [self.what, f"split {self.split}", f"{self.images:,} image{'s' if self.images != 1 else ''}"]
        if self.boundary is not None:
            parts.append(f"boundary refinement {self.boundary}")
        if self.background_power is not None:
            parts.append(f"background p = {self.background_power:g}" + (", an ORACLE" if self.oracle else ""))
        if "supervision" in self.rules:
            parts.append(f"supervision: {self.rules['supervision']}")
        return " · ".join(parts)


def rules(background_power: float | None, *, oracle: bool = False) -> dict[str, str]:
    """Return the scoring rules in words.

    Args:
        background_power: Exponent p of the background score; None if label maps are scored.
        oracle: Whether p was chosen on the ground truth that is scored.
    """
    if background_power is None:
        background = "class 0 of the label maps"
    elif oracle:
        background = f"(1 - max cam)^p, p = {background_power:g} chosen on ground truth: an ORACLE"
    else:
        background = f"(1 - max cam)^p, p = {background_power:g} (fixed)"
    return {
        "miou": "mean over classes with ground-truth pixels; counts summed over all images first",
        "miou_covered": "the same over pixels where 255 is not predicted",
        "ignore": "pixels of 255 in ground truth left out; predicted 255 counts as a miss",
        "precision": "mean over classes with ground-truth pixels that are predicted",
        "recall": "mean over classes with ground-truth pixels",
        "confusion_ratio": "mean of FP / TP over classes with ground-truth pixels and TP > 0",
        "background": background,
    }


_ADAPTER = TypeAdapter(Report)


def write_report(report: Report, path: Path) -> None:
    """Write ``report.json``."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(_ADAPTER.dump_json(report, indent=2, ensure_ascii=False) + b"\n")


def read_report(path: Path) -> Report:
    """Read and check ``report.json``.

    Raises:
        SsrError: The file is missing or no JSON, a key is missing, or a value is out of its range (such as percent).
    """
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise SsrError(f"expected a report, cannot read {path}: {error.strerror}", hint="ssr eval writes it") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SsrError(
            f"expected a report in {path}, but {where:.80}: {first['msg']:.300}", hint="ssr eval writes it anew"
        ) from error


def write_csv(metrics: Metrics, path: Path) -> None:
    """Write one row for each class: ``class, iou, precision, recall, pixels``; an empty cell is an undefined value."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "iou", "precision", "recall", "pixels"])
        for name, iou in metrics.per_class_iou.items():
            row = (iou, metrics.per_class_precision[name], metrics.per_class_recall[name])
            writer.writerow([name, *("" if value is None else f"{value:.6f}" for value in row), metrics.per_class_pixels[name]])


def write_confusion(counts: NDArray[np.int64], path: Path) -> None:
    """Write the counts ``(C, C + 1)`` as ``.npy``."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, counts, allow_pickle=False)
