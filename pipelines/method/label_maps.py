"""Label maps at the image's size, from maps on the token grid. Worker processes without torch run this module."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.classes import palette
from pipelines.datasets.image import load_image
from pipelines.errors import UsageError
from pipelines.execution.label_map_workers import MaskJob
from pipelines.method.boundary import Scores, Size, boundary_of, refined_scores
from pipelines.ops.label_map import agreement, among_labels, label_map, mixed_scores, resize_maps, with_background
from pipelines.options.stages import RefineOptions
from pipelines.options.train import PredictOptions
from pipelines.stores.mask_store import write_mask


def pseudo_mask(
    maps: NDArray[np.floating],
    labels: tuple[int, ...],
    size: Size,
    options: RefineOptions,
    load: Callable[[], Image.Image],
    device: str = "cpu",
    probabilities: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.uint8], Scores]:
    """Make the pseudo-mask of refined CAMs: resize, apply the background rule, refine the boundaries, take the argmax.

    Class probabilities of a trained model, if there are any, are mixed in before the boundaries are refined. Their share is
    ``probability_weight`` times the agreement of model and CAMs in this image, since a model that draws a known class
    elsewhere has not learned it yet.

    Args:
        maps: Refined CAMs on the token grid, ``(K, h, w)`` in [0, 1].
        labels: The K class indices.
        size: ``(H, W)`` of the image.
        options: Background rule, boundary refinement, confidence, weight of the class probabilities.
        load: Returns the image; called only if the boundary refinement reads it.
        device: Torch device of a boundary refinement that uses torch.
        probabilities: Class probabilities ``(C + 1, h', w')``, background first, on any grid.

    Returns:
        The mask ``(H, W)`` uint8, 0 background, ``i + 1`` for class i, 255 ignored; and its scores.
    """
    refines = boundary_of(options).call is not None
    power = (options.boundary_background_power if refines else None) or options.background_power

    known = None if probabilities is None else among_labels(probabilities, labels)  # (K + 1, h', w')
    weight = 0.0 if known is None else options.probability_weight * _agreement(maps, known, options.background_power)

    def scores_at(at: Size) -> Scores:
        scores = with_background(resize_maps(maps, at), power)  # (K + 1, H, W)
        return scores if known is None else mixed_scores(scores, resize_maps(known, at), weight)

    scores = refined_scores(scores_at, size, options, load, device) if refines and labels else scores_at(size)
    return label_map(scores, labels, options.min_confidence), scores


def _agreement(maps: NDArray[np.floating], known: NDArray[np.float32], power: float) -> float:
    """Return how far refined CAMs and class probabilities agree, on the finer of their grids."""
    grid = (max(maps.shape[1], known.shape[1]), max(maps.shape[2], known.shape[2]))
    return agreement(with_background(resize_maps(maps, grid), power), resize_maps(known, grid))


def refuse_probabilities(options: RefineOptions) -> None:
    """Refuse class probabilities where no work directory holds a store of them.

    Raises:
        UsageError: The options name a store.
    """
    if options.probabilities is not None:
        raise UsageError("class probabilities are only for `ssr refine` and `ssr masks`", "leave refine.probabilities out")


def predicted_mask(
    logits: NDArray[np.floating], size: Size, options: PredictOptions, load: Callable[[], Image.Image], device: str = "cpu"
) -> NDArray[np.uint8]:
    """Make the label map of a model's logits: resize, argmax, boundary refinement over the classes that won a pixel.

    Args:
        logits: ``(C + 1, h, w)``, background first.
        size: ``(H, W)`` of the image.
        options: Boundary refinement.
        load: Returns the image; called only if the boundary refinement reads it.
        device: Torch device of a boundary refinement that uses torch.

    Returns:
        ``(H, W)`` uint8: 0 background, ``i + 1`` for class i.
    """
    mask = winners(logits, size)  # (H, W)
    classes = np.union1d(mask, 0).astype(np.uint8)  # (K,)
    if boundary_of(options).call is None or len(classes) == 1:
        return mask

    def scores_at(at: Size) -> Scores:
        present = resize_maps(logits[classes], at)  # (K, H, W)
        scores = np.exp(present - present.max(axis=0))
        shares: Scores = scores / scores.sum(axis=0)
        return shares

    best: NDArray[np.uint8] = classes[refined_scores(scores_at, size, options, load, device).argmax(axis=0)]
    return best


def winners(logits: NDArray[np.floating], size: Size) -> NDArray[np.uint8]:
    """Return the class of the highest logit at each pixel.

    Classes are resized one after the other, because 81 classes of a large image would take gigabytes.

    Args:
        logits: ``(C + 1, h, w)``, background first.
        size: ``(H, W)`` of the image.

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


def make_mask(job: MaskJob, options: RefineOptions, device: str = "cpu") -> None:
    """Write one pseudo-mask.

    Raises:
        ImageError: The image can no longer be read.
    """
    mask, _ = pseudo_mask(
        job.maps, job.labels, job.size, options, lambda: load_image(job.image_path, job.orient), device, job.probabilities
    )
    write_mask(job.target, mask, palette())


def make_label_map(job: MaskJob, options: PredictOptions, device: str = "cpu") -> None:
    """Write one label map of a model.

    Raises:
        ImageError: The image can no longer be read.
    """
    mask = predicted_mask(job.maps, job.size, options, lambda: load_image(job.image_path, job.orient), device)
    write_mask(job.target, mask, palette(), job.photo)
