"""Image-level labels from ground-truth masks; called only where a person asks for it by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipelines.datasets.classes import ClassList
from pipelines.datasets.image import open_image
from pipelines.datasets.splits import check_image_id
from pipelines.errors import ImageError

IGNORE_INDEX = 255


def labels_from_masks(folder: Path, classes: ClassList, ids: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Classes that label maps show. This opens ground truth.

    Args:
        folder: Holds ``<image_id>.png``, palette or 8-bit greyscale: 0 background, i + 1 class index i, 255 ignored.
        classes: Class list.
        ids: Images to read; None reads every PNG, in name order.

    Raises:
        ImageError: A mask is missing, broken, in colour, or has a value beyond the classes.
    """
    wanted = sorted(path.stem for path in folder.glob("*.png")) if ids is None else ids
    return {check_image_id(key, str(folder)): _mask_labels(folder / f"{key}.png", len(classes.names)) for key in wanted}


def _mask_labels(path: Path, count: int) -> tuple[int, ...]:
    with open_image(path, formats=("PNG",)) as mask:
        if mask.mode not in {"P", "L"}:
            raise ImageError(f"{path}: expected a palette or 8-bit greyscale mask, found mode {mask.mode}")
        values = np.unique(np.asarray(mask)).tolist()
    wrong = [value for value in values if count < value != IGNORE_INDEX]
    if wrong:
        raise ImageError(
            f"{path}: expected values 0..{count} and {IGNORE_INDEX}, found {wrong[0]}", "--classes for other classes"
        )
    return tuple(value - 1 for value in values if 0 < value <= count)
