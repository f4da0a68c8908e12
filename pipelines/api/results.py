"""Results of `PseudoLabeler`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets.classes import palette
from pipelines.errors import UsageError
from pipelines.stores.mask_store import write_mask


@dataclass(frozen=True)
class PseudoLabels:
    """The result of `PseudoLabeler` for one image.

    Attributes:
        classes: Names of the K classes, in the order of the maps, which is that of the class list.
        cam: Initial CAM on the token grid, ``(K, h, w)`` fp32 in [0, 1].
        refined: Refined CAM, same shape and range.
        mask: ``(H, W)`` uint8: 0 background, ``i + 1`` for class i of the class list, 255 ignored.
        confidence: ``(H, W)`` fp32 in [0, 1], share of the highest score in the sum of the scores.
    """

    classes: tuple[str, ...]
    cam: NDArray[np.float32]
    refined: NDArray[np.float32]
    mask: NDArray[np.uint8]
    confidence: NDArray[np.float32]

    def save(self, path: Path | str) -> None:
        """Write the mask as a palette PNG, as `ssr refine` does.

        Raises:
            UsageError: ``path`` does not end in ``.png``.
        """
        if Path(path).suffix.lower() != ".png":
            raise UsageError(f"expected a path that ends in .png, found {path}", "only a PNG keeps the class numbers")
        write_mask(Path(path), self.mask, palette())


@dataclass(frozen=True)
class PseudoLabelTensors:
    """The result of `PseudoLabeler.torch` for a batch, on its device.

    Attributes:
        classes: Class indices ``(B, K)`` int64, -1 in empty slots.
        cam: ``(B, K, h, w)`` fp32 in [0, 1], 0 in empty slots.
        refined: Refined CAM, same shape and range.
        mask: ``(B, H, W)`` int64, values as in `PseudoLabels`; without boundary refinement.
    """

    classes: Tensor
    cam: Tensor
    refined: Tensor
    mask: Tensor
