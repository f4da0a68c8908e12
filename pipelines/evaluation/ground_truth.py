"""Reader of ground-truth masks; every ground-truth file is opened here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import ImageError
from pipelines.ops.label_map import IGNORE_INDEX

_HINT = "a mask is a PNG of class indices, palette or 8-bit greyscale: 0 background, i + 1 = class i, 255 ignore"


def read_mask(path: Path, classes: int | None = None) -> NDArray[np.uint8]:
    """Read a label map as it is stored: no EXIF rotation, no palette applied.

    Args:
        path: PNG of mode P or L.
        classes: Number of classes without background, which limits the values; None admits any value.

    Returns:
        ``(H, W)`` uint8 class indices, 255 = ignore.

    Raises:
        ImageError: There is no such file, it is no PNG, damaged, or not class indices (colours, 16 bits, greys scaled up from
            fewer bits), or a value is no class.
    """
    mask = _decoded(path)
    if classes is not None:
        _refuse_unknown(path, mask, classes)
    return mask


def _refuse_unknown(path: Path, mask: NDArray[np.uint8], classes: int) -> None:
    counts = np.bincount(mask.ravel(), minlength=256)  # (256,)
    beyond = np.flatnonzero(counts[classes + 1 : IGNORE_INDEX])
    if beyond.size:
        value = classes + 1 + int(beyond[0])
        found = f"{value} ({counts[value]} pixels)" + (" and others" if beyond.size > 1 else "")
        hint = "--classes for other classes; colours and greys must be changed into class numbers"
        raise ImageError(f"{path}: expected values 0..{classes} and {IGNORE_INDEX}, found {found}", hint)


def _decoded(path: Path) -> NDArray[np.uint8]:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe or device might never end
            raise ImageError(f"expected a PNG mask in {path}, found no regular file", hint=_HINT)
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()  # checks all chunks; decoding skips the checksums of pixels
        with Image.open(path, formats=("PNG",)) as image:
            stored = image.tile[0].args if image.tile else image.mode  # the mode in the file, such as "L;4"
            if image.mode not in ("P", "L") or (image.mode == "L" and stored != "L"):
                kind = "colours" if image.mode in ("RGB", "RGBA") else "pixels"
                raise ImageError(f"expected class indices in {path}, found {kind} of mode {stored}", hint=_HINT)
            return np.array(image, dtype=np.uint8)
    except FileNotFoundError as error:
        raise ImageError(
            f"expected a ground-truth mask, found no file {path}",
            hint="a mask is a PNG of its image's name; score a split that has masks",
        ) from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on a broken file
        found = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"expected a PNG mask in {path}, found a file that cannot be read: {found}", hint=_HINT) from error
