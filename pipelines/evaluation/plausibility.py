"""Check that ground truth is read as it is meant, by comparing labels and masks of the same images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SsrError
from pipelines.ops.label_map import IGNORE_INDEX

FOREIGN_SHARE = 0.2
"""Share of masks with unlabelled classes from which a warning is given; every dataset has some such masks."""
HOLLOW_SHARE = 0.02
"""Share of masks of only 0 and 255 on images with a class from which a warning is given: COCO has some, of crowds."""
BINARY_HINT = "write i + 1 for an object of class i where 255 is: 0 is background, 255 is not scored"


@dataclass(frozen=True)
class Plausibility:
    """Counts over images and their ground truth, which can be added in any order.

    Attributes:
        images: Number of masks.
        hollow: Number of masks of only 0 and 255 on images that have a class.
        foreign: Number of masks with a class that the image's labels do not name.
        named: For each class, the number of images whose labels name it.
        shown: For each class, the number of masks with a pixel of it.
    """

    images: int
    hollow: int
    foreign: int
    named: tuple[int, ...]
    shown: tuple[int, ...]

    def __add__(self, other: Plausibility) -> Plausibility:
        return Plausibility(
            self.images + other.images,
            self.hollow + other.hollow,
            self.foreign + other.foreign,
            tuple(map(sum, zip(self.named, other.named, strict=True))),
            tuple(map(sum, zip(self.shown, other.shown, strict=True))),
        )

    def refuse_binary(self, where: object) -> None:
        """Refuse masks that mark objects with 255, because only background would be scored.

        Raises:
            SsrError: No mask has a class, and some hold only 0 and 255.
        """
        if self.hollow and not any(self.shown):
            found = f"0 and 255 alone in {self.hollow} of {self.images} masks, and no class in any"
            raise SsrError(f"{where}: expected class numbers in ground truth, found {found}", BINARY_HINT)

    def warnings(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the warnings that make a score doubtful, one line each.

        Args:
            names: Class names without background.
        """
        lines: list[str] = []
        unseen = [name for name, named, shown in zip(names, self.named, self.shown, strict=True) if named and not shown]
        if unseen and not any(self.shown):
            lines.append("no ground-truth mask shows a class: background alone is scored")
        elif unseen:
            lines.append(f"in the labels but without one ground-truth pixel, so not scored: {', '.join(unseen)}")
        if self.hollow > HOLLOW_SHARE * self.images:
            found = f"{self.hollow} of {self.images} masks hold 0 and 255 alone although their images have a class"
            lines.append(f"{found}: 255 is not scored; if it stands for the object, {BINARY_HINT}")
        if self.foreign > FOREIGN_SHARE * self.images:
            found = f"{self.foreign} of {self.images} masks show classes that the image's labels do not name"
            lines.append(f"{found}: value i + 1 must be class i of the class list")
        return tuple(lines)


def plausibility(mask: NDArray[np.uint8], classes: int, labels: Iterable[int] | None) -> Plausibility:
    """Count one image.

    Args:
        mask: ``(H, W)`` ground truth, 0 background, i + 1 class i, 255 ignored.
        classes: Number of classes without background.
        labels: Class indices of the image; None if its labels are unknown.
    """
    present = np.bincount(mask.ravel(), minlength=256) > 0  # (256,)
    shown = present[1 : classes + 1]  # (C,)
    named = np.zeros(classes, bool)
    named[list(labels or ())] = True
    hollow = bool(present[IGNORE_INDEX]) and not shown.any() and (labels is None or bool(named.any()))
    foreign = labels is not None and bool((shown & ~named).any())
    return Plausibility(1, int(hollow), int(foreign), tuple(map(int, named)), tuple(map(int, shown)))


def nothing_seen(classes: int) -> Plausibility:
    """Return the counts of no image."""
    return Plausibility(0, 0, 0, (0,) * classes, (0,) * classes)
