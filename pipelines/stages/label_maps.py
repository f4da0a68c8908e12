"""From a model's logits on the token grid to label map PNGs at the photo's size; runs in workers that never load torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.classes import palette
from pipelines.datasets.image import load_image
from pipelines.ops.crf import dense_crf
from pipelines.ops.label_map import resize_maps
from pipelines.options.train import PredictOptions
from pipelines.stages.masks import MaskJob, crf_parameters
from pipelines.stores.mask_store import write_mask


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
