"""Label maps as palette PNGs, readable by every viewer and by mmsegmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.stores.files import atomic_path
from pipelines.stores.shard import Shard


def write_mask(path: Path, mask: NDArray[np.uint8], palette: NDArray[np.uint8]) -> None:
    """Write one label map, whole or not at all.

    Args:
        path: Target ``.png``.
        mask: ``(H, W)`` class numbers, 0 = background, 255 = ignore.
        palette: ``(256, 3)`` RGB.
    """
    picture = Image.fromarray(mask, mode="L")
    picture.putpalette(palette.astype(np.uint8).tobytes())
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def written_masks(folder: Path) -> set[str]:
    """Ids of the masks in a folder."""
    return {path.stem for path in folder.glob("*.png")} if folder.is_dir() else set()


def remove_masks(folder: Path, shard: Shard | None = None) -> None:
    """Remove the masks of a shard's images, or of all."""
    for path in folder.glob("*.png"):
        if shard is None or shard.holds(path.stem):
            path.unlink()
