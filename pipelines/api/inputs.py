"""Input of the Python classes: images in several forms, and sections of options as mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.config import build_options
from pipelines.datasets.classes import COCO14, VOC12, ClassList, load_class_list
from pipelines.datasets.image import load_image
from pipelines.encoders.weights import Weights, resolve_clip
from pipelines.errors import UsageError
from pipelines.options.sources import ClipOptions, RunOptions

_SLACK = 1e-3
"""How far pixels may lie outside [0, 1], as those of an augmentation that rounds do."""

ImageLike = NDArray[np.uint8] | Image.Image | Path | str
"""An RGB array ``(H, W, 3)`` uint8, a PIL image, or the path of an image."""


def clip_of(values: Mapping[str, Any]) -> tuple[ClipOptions, Weights]:
    """Return the options of ``[clip]`` and the weights that they name."""
    options = cast("ClipOptions", build_options("clip", values))
    return options, resolve_clip(options.model, options.pretrained)


def precision_of(given: str | None, config: Mapping[str, Any]) -> str:
    """Return the given precision, else that of ``[run]`` in a config file, else ``auto``."""
    chosen = {} if given is None else {"precision": given}
    return cast("RunOptions", build_options("run", config.get("run") or {}, chosen)).precision


def as_picture(image: ImageLike) -> Image.Image:
    """Return an image of any form as an RGB picture.

    Raises:
        UsageError: An array of another shape or type.
        ImageError: A file that cannot be used.
    """
    if isinstance(image, str | Path):
        return load_image(Path(image))
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise UsageError(
            f"expected an RGB image (H, W, 3) uint8, found {array.dtype} {array.shape}", "np.uint8 RGB, PIL or a path"
        )
    return Image.fromarray(array)


def as_pictures(images: Sequence[ImageLike]) -> list[Image.Image]:
    """Return images of any form as RGB pictures.

    Raises:
        UsageError: One path in place of a sequence, or an array of another shape or type.
        ImageError: A file that cannot be used.
    """
    if isinstance(images, str | Path | Image.Image):
        raise UsageError(f"expected a sequence of images, found the image {images!s:.80}", "labeler(image, labels) takes one")
    return [as_picture(image) for image in images]


def as_pixels(pixels: Tensor, device: torch.device) -> Tensor:
    """Return a batch of images as fp32 in [0, 1] on a device.

    Raises:
        UsageError: A tensor of another shape or type, or floating point outside [0, 1].
    """
    if not isinstance(pixels, Tensor):
        raise UsageError(f"expected a tensor of pixels (B, 3, H, W), found {type(pixels).__name__}", "torch.from_numpy")
    scaled = pixels.dtype == torch.uint8
    if pixels.numel() == 0 or pixels.ndim != 4 or pixels.shape[1] != 3 or not (scaled or pixels.is_floating_point()):
        found = f"{pixels.dtype} {tuple(pixels.shape)}"
        raise UsageError(
            f"expected pixels (B, 3, H, W), uint8 or floating point in [0, 1], found {found}", "image[None] adds B"
        )
    moved = pixels.detach().to(device).float()  # (B, 3, H, W)
    if scaled:
        return moved / 255
    low, high = (float(value) for value in torch.aminmax(moved))
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN, too
        raise UsageError(f"expected pixels in [0, 1], found {low:.3g} to {high:.3g}", "pixels / 255, or uint8")
    return moved


def checked_superpixels(superpixels: Tensor, pixels: Tensor) -> Tensor:
    """Return the superpixels ``(B, H, W)`` of a batch of images ``(B, 3, H, W)``.

    Raises:
        UsageError: Another shape, or values that are no integers from 0.
    """
    shape = (len(pixels), *pixels.shape[2:])
    if superpixels.shape != shape or superpixels.is_floating_point() or superpixels.min() < 0:
        least = f" from {superpixels.min().item()}" if superpixels.numel() else ""
        found = f"{superpixels.dtype} {tuple(superpixels.shape)}{least}"
        raise UsageError(f"expected superpixels {shape} of integers from 0, found {found}", "labeler.superpixels makes them")
    return superpixels


def checked_labels(labels: Sequence[Sequence[str]], photos: int, class_list: ClassList) -> list[tuple[int, ...]]:
    """Return the class indices of each image.

    Raises:
        UsageError: An unknown class, a name in place of a list, or lists for another number of images.
    """
    if len(labels) != photos:
        raise UsageError(f"expected one list of class names an image, found {len(labels)} for {photos} images", "labels")
    for names in labels:
        if isinstance(names, str):
            raise UsageError(f"expected a list of class names, found the name {names!r:.80}", f"labels [{names!r:.80}]")
        other = next((name for name in names if not isinstance(name, str)), None)
        if other is not None:
            raise UsageError(f"expected names of classes, found {other!r:.80}", "labeler.classes[i] is the name of class i")
    return [class_list.indices(names, f"image {number}") for number, names in enumerate(labels)]


def as_class_list(classes: Sequence[str] | str | Path, background: Sequence[str] | None) -> ClassList:
    """Return a class list from class names, a file, or the name of a shipped list.

    Words in ``background`` replace the background words of the list.

    Raises:
        UsageError: The file cannot be read, or the names are no class list.
    """
    if isinstance(classes, str | Path):
        named = {"voc12": VOC12, "coco14": COCO14}.get(str(classes))
        class_list = named if named is not None else load_class_list(Path(classes))
    else:
        names = _words(classes, "class names")
        class_list = ClassList(names, names, VOC12.background)
    return class_list if background is None else replace(class_list, background=_words(background, "background words"))


def _words(given: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the texts of a list; one text alone is refused, because its letters would be taken."""
    words = None if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if words is None or not all(isinstance(word, str) for word in words):
        raise UsageError(f"expected a list of {what}, found {given!r:.80}", "a list of texts")
    return words
