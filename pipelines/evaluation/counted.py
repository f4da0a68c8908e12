"""Counts for a report, of a whole work list or of a shard; the counts of all shards add up to those of the whole."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SsrError
from pipelines.evaluation.plausibility import Plausibility
from pipelines.stores.files import read_json, write_json

SAME = ("what", "split", "names", "options_digest", "boundary", "supervised", "corrected", "tagged", "oracle", "pictures")
"""Fields that shards must have in common to be added."""


@dataclass(frozen=True)
class Counted:
    """Confusion counts of one output, and further data for its report.

    Attributes:
        what: Name of the report's folder.
        split: Description of the split of the work list.
        names: Class names, background first.
        totals: ``(C, C + 1)`` int64 by background power, the configured one first; see `confusion_counts`.
        images: Number of scored images.
        failed: Number of images that could not be scored.
        options_digest: Digest of the options that made the scored output.
        boundary: Boundary refinement of the output, such as ``crf`` or ``none``; None if unknown.
        supervised: Whether the model of the output was trained on ground-truth masks.
        corrected: Whether the model of the output was trained on masks that people corrected.
        tagged: Whether the labels of the output are tags of `ssr tag`.
        oracle: Whether to write a second report at the best power.
        pictures: Whether to draw figures.
        truth: Comparison of the images' labels and masks.
    """

    what: str
    split: str
    names: tuple[str, ...]
    totals: dict[float | None, NDArray[np.int64]]
    images: int
    failed: int
    options_digest: str
    boundary: str | None
    supervised: bool
    corrected: bool
    tagged: bool
    oracle: bool
    pictures: bool
    truth: Plausibility


def add_counted(shards: Sequence[Counted]) -> Counted:
    """Add the counts of all shards; they are integers, so the result does not depend on the order.

    Raises:
        SsrError: The shards belong to different evaluations.
    """
    first = shards[0]
    for other in shards[1:]:
        changed = [key for key in SAME if getattr(other, key) != getattr(first, key)]
        if changed or list(other.totals) != list(first.totals):
            what = changed[0] if changed else "background_power"
            raise SsrError(
                f"shards of eval {first.what} differ in {what}", "run `ssr eval` on all shards with the same options"
            )
    totals = {power: np.sum([shard.totals[power] for shard in shards], axis=0) for power in first.totals}
    images, failed = sum(shard.images for shard in shards), sum(shard.failed for shard in shards)
    truth = reduce(operator.add, (shard.truth for shard in shards))
    return dataclasses.replace(first, totals=totals, images=images, failed=failed, truth=truth)


def write_counted(path: Path, counted: Counted) -> None:
    """Write counts as JSON."""
    totals = [[power, matrix.tolist()] for power, matrix in counted.totals.items()]
    write_json(path, {**dataclasses.asdict(counted), "totals": totals})


def read_counted(path: Path) -> Counted:
    """Read what `write_counted` wrote.

    Raises:
        SsrError: The file is missing or damaged.
    """
    content: Any = read_json(path)
    try:
        names = tuple(map(str, content["names"]))
        totals: dict[float | None, NDArray[np.int64]] = {}
        for power, rows in content["totals"]:
            matrix = np.asarray(rows)
            if matrix.dtype != np.int64 or matrix.shape != (len(names), len(names) + 1) or (matrix < 0).any():
                raise ValueError
            totals[None if power is None else float(power)] = matrix
        if not totals or content.keys() != {field.name for field in dataclasses.fields(Counted)}:
            raise ValueError
        truth = _truth(content["truth"], len(names) - 1)
        return Counted(**{**content, "names": names, "totals": totals, "truth": truth})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SsrError(f"{path} is damaged", "remove it and run `ssr eval` on that shard again") from error


def _truth(content: Any, classes: int) -> Plausibility:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    found = Plausibility(**fields)
    numbers = (found.images, found.hollow, found.foreign, *found.named, *found.shown)
    if len(found.named) != classes or len(found.shown) != classes or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError
    return found
