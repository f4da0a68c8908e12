"""Confidences of the pseudo-masks in a work directory, from the CAMs that they were made of."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from pipelines.ops.confidence import mask_confidence
from pipelines.stores.array_store import ArrayReader, store_exists
from pipelines.stores.image_arrays import read_cam
from pipelines.workdir.workspace import Workspace


class Confidences:
    """Confidence of each class of a pseudo-mask, from the CAMs of a work directory; a context manager.

    Args:
        workspace: Work directory with the CAMs; without CAMs, or with None, all confidences are empty.
    """

    def __init__(self, workspace: Workspace | None) -> None:
        paths = () if workspace is None else (workspace.cams, workspace.refined)
        self._readers = [ArrayReader(path) for path in paths] if paths and all(map(store_exists, paths)) else []
        self._stack = ExitStack()

    def __enter__(self) -> Confidences:
        for reader in self._readers:
            self._stack.enter_context(reader)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __bool__(self) -> bool:
        return bool(self._readers)

    def __call__(self, image_id: str, mask: NDArray[np.uint8]) -> dict[int, float]:
        """Return the confidence in [0, 1] by class index; empty without CAMs."""
        if not self._readers or not all(image_id in reader for reader in self._readers):
            return {}
        (cam, ours), (refined, theirs) = (read_cam(reader, image_id) for reader in self._readers)
        labels = list(theirs["labels"])
        if list(ours["labels"]) != labels or cam.shape != refined.shape:
            return {}
        return dict(zip(labels, mask_confidence(cam, refined, mask, labels), strict=True))

    def refined(self, image_id: str, label: int) -> NDArray[np.float16] | None:
        """Return the refined CAM of a class, ``(h, w)``."""
        maps, attributes = read_cam(self._readers[1], image_id)
        return next((heat for heat, known in zip(maps, attributes["labels"], strict=True) if known == label), None)
