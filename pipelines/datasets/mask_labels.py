"""Image-level labels from ground-truth masks; called only if this source is named explicitly."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipelines.datasets.classes import ClassList
from pipelines.datasets.names import check_image_id
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.plausibility import nothing_seen, plausibility


def labels_from_masks(folder: Path, classes: ClassList, ids: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Read the classes that label maps show. This opens ground truth.

    Args:
        folder: Folder of ``<image_id>.png``, palette or 8-bit greyscale: 0 background, i + 1 class index i, 255 ignored.
        classes: Class list.
        ids: Images to read; None reads every PNG, in name order.

    Raises:
        ImageError: A mask is missing, broken, in colour, or has a value beyond the classes.
        SsrError: The masks mark objects with 255.
    """
    wanted = sorted(path.stem for path in folder.glob("*.png")) if ids is None else ids
    count, truth = len(classes.names), nothing_seen(len(classes.names))
    labels: dict[str, tuple[int, ...]] = {}
    for key in wanted:
        mask = read_mask(folder / f"{check_image_id(key, str(folder))}.png", count)
        found = plausibility(mask, count, None)
        truth += found
        labels[key] = tuple(index for index, shown in enumerate(found.shown) if shown)
    truth.refuse_binary(folder)
    return labels
