"""From maps on the token grid to label maps at the photo's size. Runs in workers that never load torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.classes import palette
from pipelines.datasets.image import load_image
from pipelines.execution.label_map_workers import MaskJob
from pipelines.ops.crf import CrfParameters, dense_crf
from pipelines.ops.label_map import label_map, resize_maps, with_background
from pipelines.options.stages import RefineOptions
from pipelines.options.train import PredictOptions
from pipelines.plugins import table_entry
from pipelines.stores.mask_store import write_mask

AnyOptions = RefineOptions | PredictOptions
Image = NDArray[np.uint8]
"""``(H, W, 3)`` RGB."""
Scores = NDArray[np.float32]
"""``(K + 1, H, W)``, background first, non-negative."""

CRF_KEYS = {
    "crf_iterations": "iterations",
    "crf_scale": "scale",
    "crf_bilateral_sxy": "bilateral_sxy",
    "crf_bilateral_srgb": "bilateral_srgb",
    "crf_bilateral_compat": "bilateral_compat",
    "crf_gaussian_sxy": "gaussian_sxy",
    "crf_gaussian_compat": "gaussian_compat",
}
"""Option -> parameter of the CRF."""


@dataclass(frozen=True)
class Boundary:
    """One way to move scores to the edges of a photo.

    Attributes:
        call: Scores, the photo and options -> scores of the same shape; None keeps the scores and opens no photo.
        options: Names of the options that change its result.
    """

    call: Callable[[Scores, Image, AnyOptions], Scores] | None
    options: tuple[str, ...] = ()


def _crf(scores: Scores, image: Image, options: AnyOptions) -> Scores:
    return dense_crf(image, scores, CrfParameters(**{name: getattr(options, key) for key, name in CRF_KEYS.items()}))


BOUNDARY: dict[str, Boundary] = {
    "none": Boundary(None),
    "crf": Boundary(_crf, ("crf_background_power", *CRF_KEYS)),
}


def boundary_of(options: AnyOptions) -> Boundary:
    """The entry of `BOUNDARY` that the options ask for."""
    return table_entry(BOUNDARY, "crf" if options.crf else "none", "boundary refinement", "--crf")


def label_map_values(options: AnyOptions, *names: str) -> dict[str, Any]:
    """The options that change a label map once its maps are given, as JSON holds them.

    Args:
        options: Of a stage that writes label maps.
        names: Those that count whatever the boundary refinement is.
    """
    return options.model_dump(mode="json", include={*names, "crf", *boundary_of(options).options})


def pseudo_mask(
    maps: NDArray[np.floating],
    labels: tuple[int, ...],
    size: tuple[int, int],
    options: RefineOptions,
    load: Callable[[], Image],
) -> tuple[NDArray[np.uint8], Scores]:
    """The pseudo-mask of refined CAMs: resize, background rule, boundary refinement, argmax.

    Args:
        maps: Refined CAM on the token grid, ``(K, h, w)`` in [0, 1].
        labels: The K class indices.
        size: ``(H, W)`` of the photo.
        options: Background rule, boundary refinement, confidence.
        load: Gives the photo; called only if the boundary refinement looks at it.

    Returns:
        The mask ``(H, W)`` uint8, 0 background, ``i + 1`` for class i, 255 ignored; and its scores.
    """
    boundary = boundary_of(options)
    power = (boundary.call and options.crf_background_power) or options.background_power
    scores = with_background(resize_maps(maps, size), power)  # (K + 1, H, W)
    if boundary.call is not None:
        scores = boundary.call(scores, load(), options)
    return label_map(scores, labels, options.min_confidence), scores


def predicted_mask(
    logits: NDArray[np.floating], size: tuple[int, int], options: PredictOptions, load: Callable[[], Image]
) -> NDArray[np.uint8]:
    """The label map of a model's logits: resize, argmax, boundary refinement over the classes that won a pixel.

    Args:
        logits: ``(C + 1, h, w)``, background first.
        size: ``(H, W)`` of the photo.
        options: Boundary refinement.
        load: Gives the photo; called only if the boundary refinement looks at it.

    Returns:
        ``(H, W)`` uint8: 0 background, ``i + 1`` for class i.
    """
    mask, boundary = winners(logits, size), boundary_of(options)  # (H, W)
    if boundary.call is None:
        return mask
    classes = np.union1d(mask, 0).astype(np.uint8)  # (K,)
    present = resize_maps(logits[classes], size)  # (K, H, W)
    scores = np.exp(present - present.max(axis=0))
    refined = boundary.call(scores / scores.sum(axis=0), load(), options)
    best: NDArray[np.uint8] = classes[refined.argmax(axis=0)]
    return best


def winners(logits: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of the highest logit at each pixel, one class after the other: 81 classes of a large photo are gigabytes.

    Args:
        logits: ``(C + 1, h, w)``, background first.
        size: ``(H, W)`` of the photo.

    Returns:
        ``(H, W)`` uint8.
    """
    best = resize_maps(logits[:1], size)[0]  # (H, W)
    mask = np.zeros(size, dtype=np.uint8)
    for index in range(1, len(logits)):
        scores = resize_maps(logits[index : index + 1], size)[0]
        mask[scores > best] = index
        np.maximum(best, scores, out=best)
    return mask


def make_mask(job: MaskJob, options: RefineOptions) -> None:
    """Write one pseudo-mask.

    Raises:
        ImageError: The photo cannot be read any more.
    """
    mask, _ = pseudo_mask(job.maps, job.labels, job.size, options, lambda: np.asarray(load_image(job.image_path)))
    write_mask(job.target, mask, palette())


def make_label_map(job: MaskJob, options: PredictOptions) -> None:
    """Write one label map of a model.

    Raises:
        ImageError: The photo cannot be read any more.
    """
    mask = predicted_mask(job.maps, job.size, options, lambda: np.asarray(load_image(job.image_path)))
    write_mask(job.target, mask, palette())
