"""From a sample of the work list to a photo that the encoders take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines.datasets.base import Sample
from pipelines.datasets.image import fingerprint, load_image
from pipelines.method.encoders import Encoders
from pipelines.method.photo import Photo
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.image_arrays import superpixels_of


def load_photo(encoders: Encoders, superpixels: ArrayReader | None, sample: Sample, scales: Sequence[float] = (1.0,)) -> Photo:
    """Decode a photo and resize it for the encoders.

    Args:
        encoders: What the photo is prepared for.
        superpixels: Store of superpixels; None if no part needs them.
        sample: Which photo.
        scales: Resolution factors.

    Raises:
        ImageError: The file cannot be used, or its superpixels are missing, of another size or of another photo.
    """
    image = load_image(sample.image_path, sample.orient)
    seen = replace(sample, photo=fingerprint(sample.image_path))
    return encoders.photo(seen, image, superpixels_of(superpixels, sample.image_id, seen.photo), scales)
