"""Fingerprints of the images of a training, by which images that were replaced later are found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipelines.datasets.base import Sample
from pipelines.datasets.image import fingerprint
from pipelines.errors import SsrError
from pipelines.stores.files import read_json, write_json
from pipelines.workdir.output import is_changed

PHOTOS = "photos.json"
"""File of fingerprints by image id, in the folder of a training."""


def note_photos(folder: Path, samples: Iterable[Sample]) -> None:
    """Store the fingerprints of the images that a training begins with."""
    write_json(folder / PHOTOS, {sample.image_id: fingerprint(sample.image_path) for sample in samples})


def replaced_photos(folder: Path, samples: Iterable[Sample], begun: float) -> tuple[str, ...]:
    """Return the ids of images that were replaced since a training began; none if it stored no fingerprints.

    Args:
        folder: Folder of the training.
        samples: The present images; those that the training did not have are ignored.
        begun: Time in seconds since 1970 at which the training began.

    Raises:
        SsrError: The file is damaged.
    """
    path = folder / PHOTOS
    if not path.is_file():
        return ()
    known = read_json(path)
    if not isinstance(known, dict):
        raise SsrError(f"{path} is damaged", "remove the file: images that were replaced are not named then")
    return tuple(sample.image_id for sample in samples if is_changed(sample, begun, (known.get(sample.image_id),)))
