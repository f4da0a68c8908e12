"""Reading of the stores of earlier stages, with checks, because a file made elsewhere may hold anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ImageError, SsrError
from pipelines.stores.array_store import ArrayReader

MAX_SUPERPIXELS = 1 << 16


def read_cam(reader: ArrayReader, image_id: str) -> tuple[NDArray[np.float16], dict[str, Any]]:
    """Read a CAM and its attributes.

    Args:
        reader: Reader of ``cams.h5`` or ``refined.h5``.
        image_id: Id of the image.

    Returns:
        ``(K, h, w)`` fp16 in [0, 1], one map for each of ``labels``; ``size`` is ``[H, W]`` of the image.

    Raises:
        SsrError: The CAM is missing or damaged, or the entry is no CAM.
    """
    cam, attributes = reader.read(image_id)
    labels, size = attributes.get("labels"), attributes.get("size")
    whole = isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    maps = cam.ndim == 3 and cam.dtype.kind == "f" and isinstance(labels, list) and len(cam) == len(labels)
    if not (whole and maps and cam.shape[1] * cam.shape[2] > 0 and (cam >= 0).all() and (cam <= 1).all()):  # NaN fails both
        expected = f"{len(labels) if isinstance(labels, list) else 'K'} maps (K, h, w) of values from 0 to 1"
        raise SsrError(
            f"{image_id} in {reader.path}: expected {expected}, found {_seen(cam)}", "run its stage again with --force"
        )
    return cam, attributes


def read_probabilities(reader: ArrayReader, image_id: str, classes: int) -> tuple[NDArray[np.float16], dict[str, Any]]:
    """Read a model's class probabilities of an image, and their attributes.

    Args:
        reader: Reader of a store of `ssr predict --probabilities`.
        image_id: Id of the image.
        classes: Number C of classes without background.

    Returns:
        ``(C + 1, h, w)`` fp16 in [0, 1], background first; ``size`` is ``[H, W]`` of the image.

    Raises:
        SsrError: They are missing or damaged.
    """
    found, attributes = reader.read(image_id)
    if not (found.ndim == 3 and found.dtype.kind == "f" and len(found) == classes + 1 and found.size > 0) or not (
        (found >= 0).all() and (found <= 1).all()  # NaN fails both
    ):
        expected = f"{classes + 1} maps (C + 1, h, w) of values from 0 to 1"
        raise SsrError(
            f"{image_id} in {reader.path}: expected {expected}, found {_seen(found)}", "run `ssr predict` again with --force"
        )
    return found, attributes


def read_superpixels(reader: ArrayReader, image_id: str) -> NDArray[np.integer]:
    """Read the superpixels of an image.

    Returns:
        ``(H, W)`` integers from 0.

    Raises:
        SsrError: The superpixels are missing or damaged, or the entry holds none.
    """
    superpixels, _ = reader.read(image_id)
    plain = superpixels.ndim == 2 and superpixels.dtype.kind in "ui" and superpixels.size > 0
    if not (plain and superpixels.min() >= 0 and superpixels.max() < MAX_SUPERPIXELS):
        expected = f"superpixels (H, W) from 0 to {MAX_SUPERPIXELS - 1}"
        found = _seen(superpixels)
        raise SsrError(f"{image_id} in {reader.path}: expected {expected}, found {found}", "run its stage again with --force")
    return superpixels


def photo_attributes(size: Sequence[int], photo: str, labels: Sequence[int] | None = None, **others: int) -> dict[str, Any]:
    """Return the attributes that are stored beside an array made of an image.

    Args:
        size: ``(H, W)`` of the image.
        photo: Fingerprint of the image; left out if empty.
        labels: Class indices of the maps.
        **others: Further numbers.
    """
    found: dict[str, Any] = {} if labels is None else {"labels": list(labels)}
    return found | {"size": list(size), **others} | ({"photo": photo} if photo else {})


def superpixels_of(reader: ArrayReader | None, image_id: str, photo: str = "") -> NDArray[np.integer] | None:
    """Read the superpixels of an image that is processed next; None without a store, if no option needs them.

    Raises:
        ImageError: The store does not hold the image, or holds superpixels of a replaced one.
        SsrError: The superpixels are damaged, or the entry holds none.
    """
    if reader is None:
        return None
    if image_id not in reader:
        raise ImageError("it has no superpixels", "run `ssr superpixels`")
    recorded = reader.attributes(image_id).get("photo")
    if photo and recorded and recorded != photo:
        raise ImageError("its image was replaced after its superpixels were made", "run `ssr superpixels`")
    return read_superpixels(reader, image_id)


def _seen(array: NDArray[Any]) -> str:
    span = f" from {array.min():.4g} to {array.max():.4g}" if array.size else ""
    return f"{array.dtype} {array.shape}{span}"
