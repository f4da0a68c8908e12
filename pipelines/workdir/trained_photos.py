"""The photos of a training: their fingerprints are kept, so that one which was replaced afterwards can be named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipelines.datasets.base import Sample
from pipelines.datasets.image import fingerprint
from pipelines.errors import SsrError
from pipelines.stores.files import read_json, write_json
from pipelines.workdir.output import is_changed

PHOTOS = "photos.json"
"""Image id -> fingerprint, in the folder of a training."""


def note_photos(folder: Path, samples: Iterable[Sample]) -> None:
    """Write down which photos a training begins with."""
    write_json(folder / PHOTOS, {sample.image_id: fingerprint(sample.image_path) for sample in samples})


def replaced_photos(folder: Path, samples: Iterable[Sample], begun: float) -> tuple[str, ...]:
    """Ids of photos that are others than those that a training began with; none if it wrote down none.

    Args:
        folder: Of the training.
        samples: The photos as they are now; those that the training did not have pass.
        begun: Seconds since 1970 at which the training was begun.

    Raises:
        SsrError: The file is damaged.
    """
    path = folder / PHOTOS
    if not path.is_file():
        return ()
    known = read_json(path)
    if not isinstance(known, dict):
        raise SsrError(f"{path} is damaged", "remove the file: photos that were replaced are not named then")
    return tuple(sample.image_id for sample in samples if is_changed(sample, begun, (known.get(sample.image_id),)))
