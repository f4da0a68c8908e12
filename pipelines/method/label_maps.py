"""From maps on the token grid to label map PNGs at the photo's size; runs in workers that never load torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.classes import palette
from pipelines.datasets.image import load_image
from pipelines.execution.label_map_workers import MaskJob
from pipelines.ops.crf import CrfParameters, dense_crf
from pipelines.ops.label_map import label_map, resize_maps, with_background
from pipelines.options.stages import RefineOptions
from pipelines.options.train import PredictOptions
from pipelines.stores.mask_store import write_mask

CRF_KEYS = {
    "crf_iterations": "iterations",
    "crf_bilateral_sxy": "bilateral_sxy",
    "crf_bilateral_srgb": "bilateral_srgb",
    "crf_bilateral_compat": "bilateral_compat",
    "crf_gaussian_sxy": "gaussian_sxy",
    "crf_gaussian_compat": "gaussian_compat",
}
"""Option -> parameter of the CRF."""


def crf_parameters(options: RefineOptions | PredictOptions) -> CrfParameters:
    """The numbers of the CRF that the options ask for."""
    return CrfParameters(**{name: getattr(options, key) for key, name in CRF_KEYS.items()})


def make_mask(job: MaskJob, options: RefineOptions) -> None:
    """Make one pseudo-mask: resize, background rule, CRF, argmax, PNG.

    Raises:
        ImageError: The photo cannot be read any more.
    """
    power = (options.crf and options.crf_background_power) or options.background_power
    scores = with_background(resize_maps(job.maps, job.size), power)  # (K + 1, H, W)
    if options.crf:
        image = np.asarray(load_image(job.image_path))  # (H, W, 3)
        scores = dense_crf(image, scores, crf_parameters(options))
    write_mask(job.target, label_map(scores, job.labels, options.min_confidence), palette())


def make_label_map(job: MaskJob, options: PredictOptions) -> None:
    """Make one label map: resize, argmax, CRF over the classes found, PNG.

    Raises:
        ImageError: The photo cannot be read any more.
    """
    found = winners(job.maps, job.size)  # (H, W)
    if options.crf:
        classes = np.union1d(found, 0).astype(np.uint8)  # (K,)
        logits = resize_maps(job.maps[classes], job.size)  # (K, H, W)
        scores = np.exp(logits - logits.max(axis=0))
        posterior = dense_crf(np.asarray(load_image(job.image_path)), scores / scores.sum(axis=0), crf_parameters(options))
        found = classes[posterior.argmax(axis=0)]
    write_mask(job.target, found, palette())


def winners(logits: NDArray[np.float16], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of the highest logit at each pixel, one class after the other: 81 classes of a large photo are gigabytes.

    Args:
        logits: ``(C + 1, h, w)``, background first.
        size: ``(H, W)`` of the photo.

    Returns:
        ``(H, W)`` uint8.
    """
    best = resize_maps(logits[:1], size)[0]  # (H, W)
    found = np.zeros(size, dtype=np.uint8)
    for index in range(1, len(logits)):
        scores = resize_maps(logits[index : index + 1], size)[0]
        found[scores > best] = index
        np.maximum(best, scores, out=best)
    return found
