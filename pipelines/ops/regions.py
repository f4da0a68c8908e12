"""Connected regions of label maps: objects for exports, and specks to remove."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.ops.label_map import IGNORE_INDEX


@dataclass(frozen=True)
class Region:
    """Pixels of one value, in the box around them.

    Attributes:
        value: Value in the label map, 1 to 255.
        top: First row.
        left: First column.
        inside: ``(h, w)`` bool; the box fits tightly.
    """

    value: int
    top: int
    left: int
    inside: NDArray[np.bool_]

    def full(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the region in its image, ``(H, W)`` bool."""
        mask = np.zeros(size, dtype=bool)
        height, width = self.inside.shape
        mask[self.top : self.top + height, self.left : self.left + width] = self.inside
        return mask


def regions(label_map: NDArray[np.uint8], instances: bool) -> Iterator[Region]:
    """Yield the regions of a label map, in ascending order of value.

    Args:
        label_map: ``(H, W)`` class numbers; 0 is no region.
        instances: Whether each connected region of a class (8 neighbours) is one region, in reading order; else a class is one.
    """
    from skimage.measure import regionprops  # imported here, because the import takes longer than a finished stage

    if not instances:
        for found in regionprops(label_map):  # type: ignore[no-untyped-call]
            yield Region(int(found.label), int(found.bbox[0]), int(found.bbox[1]), found.image)
        return
    parts = _connected(label_map)
    found_parts = regionprops(parts)  # type: ignore[no-untyped-call]
    values = [int(label_map[tuple(found.coords[0])]) for found in found_parts]
    for value, found in sorted(zip(values, found_parts, strict=True), key=lambda pair: pair[0]):  # keeps reading order
        yield Region(value, int(found.bbox[0]), int(found.bbox[1]), found.image)


def without_specks(label_map: NDArray[np.uint8], min_area: int) -> NDArray[np.uint8]:
    """Return the label map with smaller connected regions set to 0; ignored pixels (255) stay.

    Args:
        label_map: ``(H, W)`` class numbers.
        min_area: Number of pixels of the smallest region that stays.
    """
    if min_area <= 1:
        return label_map
    parts = _connected(label_map)  # (H, W)
    small = np.bincount(parts.ravel()) < min_area  # (R + 1,)
    return np.where(small[parts] & (label_map != IGNORE_INDEX), 0, label_map).astype(np.uint8)


def _connected(label_map: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of each pixel's connected region, 0 for background; regions of two classes never join."""
    from skimage.measure import label

    parts: NDArray[np.int64] = label(label_map, background=0, connectivity=2)  # type: ignore[no-untyped-call]
    return parts
