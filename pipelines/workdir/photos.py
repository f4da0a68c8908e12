"""Preparation of samples of the work list as images for the encoders."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Sample
from pipelines.datasets.image import fingerprint, load_image
from pipelines.errors import SsrError
from pipelines.execution.pool import DEAD_WORKER
from pipelines.method.encoders import Encoders
from pipelines.method.photo import Photo
from pipelines.options.stages import SuperpixelsOptions
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.image_arrays import superpixels_of


def seen(sample: Sample) -> Sample:
    """Return the sample with the fingerprint of its present image file."""
    return replace(sample, photo=fingerprint(sample.image_path))


def load_photo(encoders: Encoders, superpixels: ArrayReader | None, sample: Sample, scales: Sequence[float] = (1.0,)) -> Photo:
    """Decode an image and resize it for the encoders.

    Args:
        encoders: Encoders for which the image is prepared.
        superpixels: Store of superpixels; None if no part needs them.
        sample: Names the image.
        scales: Resolution factors.

    Raises:
        ImageError: The file cannot be used, or its superpixels are missing, of another size or of another image.
    """
    image = load_image(sample.image_path, sample.orient)
    sample = seen(sample)
    return encoders.photo(sample, image, superpixels_of(superpixels, sample.image_id, sample.photo), scales)


def load_unstored(
    encoders: Encoders, pool: Executor, options: SuperpixelsOptions, sample: Sample, scales: Sequence[float] = (1.0,)
) -> Photo:
    """Do the same as `load_photo`, with superpixels that are computed in memory if a part needs them.

    Raises:
        ImageError: The file cannot be used.
        SsrError: A process of the pool died.
    """
    image = load_image(sample.image_path, sample.orient)
    ids = slic_in(pool, options, np.asarray(image)) if "superpixels" in encoders.needs else None
    return encoders.photo(seen(sample), image, ids, scales)


def slic_in(pool: Executor, options: SuperpixelsOptions, image: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Compute the superpixels ``(H, W)`` of an image ``(H, W, 3)`` in a process of a pool.

    Raises:
        SsrError: The process died.
    """
    from pipelines.ops.slic import slic_superpixels  # here, as it takes half a second and a finished stage makes none

    arguments = (image, options.segments, options.compactness, options.iterations)
    try:
        return pool.submit(slic_superpixels, *arguments).result()
    except BrokenProcessPool as error:
        raise SsrError(*DEAD_WORKER) from error
