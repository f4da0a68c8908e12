"""Label maps as palette PNGs, which every viewer and mmsegmentation can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.stores.files import atomic_path
from pipelines.stores.shard import Shard

PHOTO = "photo"
"""Key of the text in a PNG that holds the fingerprint of its image."""


def write_mask(path: Path, mask: NDArray[np.uint8], palette: NDArray[np.uint8], photo: str = "") -> None:
    """Write one label map, atomically.

    Args:
        path: Target ``.png``.
        mask: ``(H, W)`` class numbers, 0 = background, 255 = ignore.
        palette: ``(256, 3)`` RGB.
        photo: Fingerprint of the image, written into the PNG as text unless it is empty.
    """
    text = PngInfo()
    if photo:
        text.add_text(PHOTO, photo)
    picture = Image.fromarray(mask, mode="L")
    picture.putpalette(palette.astype(np.uint8).tobytes())
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=text)


def photo_of_mask(path: Path) -> str:
    """Return the fingerprint of the image that a label map was made of; empty if there is none or it cannot be read."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return str(picture.info.get(PHOTO, ""))
    except (OSError, SyntaxError, ValueError):  # Pillow's errors for a broken PNG
        return ""


def written_masks(folder: Path) -> set[str]:
    """Return the ids of the masks in a folder."""
    return {path.stem for path in folder.glob("*.png")} if folder.is_dir() else set()


def remove_masks(folder: Path, shard: Shard | None = None) -> None:
    """Remove the masks of a shard's images, or all of them."""
    for path in folder.glob("*.png"):
        if shard is None or shard.holds(path.stem):
            path.unlink()
