"""What the Python objects take: photos in several forms, sections of options as mappings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.config import build_options
from pipelines.datasets.image import load_image
from pipelines.encoders.weights import Weights, resolve_clip
from pipelines.errors import UsageError
from pipelines.options.sources import ClipOptions

ImageLike = NDArray[np.uint8] | Image.Image | Path | str
"""An RGB array ``(H, W, 3)`` uint8, a PIL image, or the path of a photo."""


def clip_of(values: Mapping[str, Any]) -> tuple[ClipOptions, Weights]:
    """Options of ``[clip]`` and the weights that they name."""
    options = cast("ClipOptions", build_options("clip", values))
    return options, resolve_clip(options.model, options.pretrained)


def as_picture(image: ImageLike) -> Image.Image:
    """Any form of a photo as RGB.

    Raises:
        UsageError: An array of another shape or type.
        ImageError: A file that cannot be used.
    """
    if isinstance(image, str | Path):
        return load_image(Path(image))
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise UsageError(
            f"expected an RGB image (H, W, 3) uint8, found {array.dtype} {array.shape}", "np.uint8 RGB, PIL or a path"
        )
    return Image.fromarray(array)
