"""Class probabilities of a trained model in the store of `ssr predict --probabilities`, for the masks of `ssr refine`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Sample
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.models.segmenter import UPPER_BOUND
from pipelines.stores.array_store import ArrayReader, store_exists
from pipelines.stores.image_arrays import read_probabilities
from pipelines.stores.manifest import read_manifest
from pipelines.workdir.commands import command_for
from pipelines.workdir.workspace import Workspace, folder_name

COMMAND = "ssr predict --probabilities"


class Probabilities:
    """Class probabilities of images; a context manager.

    Args:
        workspace: Names the split and its classes.
        path: The store; ``auto`` is that of the split in the work directory.

    Attributes:
        settings: The setting that identifies them in a manifest.
        note: A line for the user if the model has learned from ground truth, or "".

    Raises:
        SsrError: There is no such store.
        UsageError: Another stage has made it, its model has other classes, or it is of other images.
    """

    def __init__(self, workspace: Workspace, path: Path) -> None:
        own = path.name == "auto" and not path.exists()
        self.path = workspace.predictions / f"{folder_name(workspace.dataset.split)}.h5" if own else path
        self._command = command_for(workspace.work, COMMAND)
        manifest = read_manifest(self.path)
        if manifest is None or not store_exists(self.path):
            raise SsrError(f"no class probabilities at {self.path}", f"run `{self._command}` first")
        if manifest.stage != "predict":
            raise UsageError(f"expected a store of `{COMMAND}`, found {self.path} of `ssr {manifest.stage}`", "--probabilities")
        names = list(workspace.dataset.classes.names)
        if manifest.settings.get("classes") != names:
            raise UsageError(f"{self.path} is of a model with other classes than the dataset's {len(names)}", "--probabilities")
        self.settings = {"probabilities": manifest.options_digest}
        self.note = f"the probabilities' model was {UPPER_BOUND}" if manifest.settings.get("supervision") == "masks" else ""
        self._classes = len(names)
        self._reader = ArrayReader(self.path)
        dataset = workspace.dataset  # all of it: one shard's images may be missing
        with ArrayReader(self.path) as reader:
            if not any(sample.image_id in reader for sample in dataset.samples):
                raise UsageError(
                    f"{self.path} holds class probabilities of no image of split {dataset.split}", "--probabilities"
                )

    def __enter__(self) -> Self:
        self._reader.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._reader.__exit__(kind, error, trace)

    def of(self, sample: Sample, size: list[int], photo: str = "") -> NDArray[np.float16]:
        """Return the class probabilities ``(C + 1, h, w)`` fp16 of an image, background first.

        Args:
            sample: The image.
            size: ``[H, W]`` of it.
            photo: Fingerprint of the image that its refined CAM was made of, if that is known.

        Raises:
            ImageError: The store does not have them, or has those of another image of this name.
            SsrError: The entry is damaged.
        """
        if sample.image_id not in self._reader:
            raise ImageError(f"it has no class probabilities in {self.path}", f"run `{self._command}`")
        probabilities, attributes = read_probabilities(self._reader, sample.image_id, self._classes)
        if attributes.get("size") != size or (photo and attributes.get("photo", photo) != photo):
            raise ImageError("its class probabilities are of another image", f"run `{self._command}`")
        return probabilities
