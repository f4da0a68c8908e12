"""From refined CAMs to pseudo-mask PNGs, and the workers beside the encoders that make any label map's PNG."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.classes import palette
from pipelines.datasets.image import load_image
from pipelines.errors import ImageError, SsrError
from pipelines.execution.pool import process_pool
from pipelines.ops.crf import CrfParameters, dense_crf
from pipelines.ops.label_map import label_map, resize_maps, with_background
from pipelines.options.stages import RefineOptions
from pipelines.options.train import PredictOptions
from pipelines.stores.mask_store import write_mask
from pipelines.stores.shard import Shard

CRF_KEYS = {
    "crf_iterations": "iterations",
    "crf_bilateral_sxy": "bilateral_sxy",
    "crf_bilateral_srgb": "bilateral_srgb",
    "crf_bilateral_compat": "bilateral_compat",
    "crf_gaussian_sxy": "gaussian_sxy",
    "crf_gaussian_compat": "gaussian_compat",
}
"""Option -> parameter of the CRF."""

DEAD_CRF = ("a CRF process died (killed, or out of memory)", "run again to go on; fewer --workers need less")

MASK_KEYS = ("background_power", "min_confidence", "crf", "crf_background_power", *CRF_KEYS)
"""Options that act after the propagation: changing them leaves the refined CAMs as they are."""


@dataclass(frozen=True)
class MaskJob:
    """One label map to make.

    Attributes:
        image_id: Whose label map.
        image_path: The photo; opened only for the CRF.
        maps: On the token grid, fp16: a refined CAM ``(K, h, w)``, or logits ``(C + 1, h, w)``, background first.
        labels: The K class indices; empty for logits.
        size: ``(H, W)`` of the photo.
        target: The PNG.
    """

    image_id: str
    image_path: Path
    maps: NDArray[np.float16]
    labels: tuple[int, ...]
    size: tuple[int, int]
    target: Path


def mask_settings(options: RefineOptions) -> dict[str, Any]:
    """The options that change a mask once its refined CAM is given."""
    keys = MASK_KEYS if options.crf else [key for key in MASK_KEYS if not key.startswith("crf_")]
    return options.model_dump(mode="json", include=set(keys))


def crf_parameters(options: RefineOptions | PredictOptions) -> CrfParameters:
    """The numbers of the CRF that the options ask for."""
    return CrfParameters(**{name: getattr(options, key) for key, name in CRF_KEYS.items()})


def remove_masks(folder: Path, shard: Shard | None = None) -> None:
    """Remove the masks of a shard's images, or of all."""
    for path in folder.glob("*.png"):
        if shard is None or shard.holds(path.stem):
            path.unlink()


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


AnyOptions = TypeVar("AnyOptions", bound=RefineOptions | PredictOptions)


class MaskMakers(Generic[AnyOptions]):
    """Makes label maps in the background, a bounded number at a time.

    Args:
        make: Makes one; importable, for it may run in another process.
        options: Its second argument.
        workers: Processes with the CRF (it holds the interpreter lock), threads without.
        done: Called for each label map, with the error of a bad image or None.
    """

    def __init__(
        self,
        make: Callable[[MaskJob, AnyOptions], None],
        options: AnyOptions,
        workers: int,
        done: Callable[[str, ImageError | None], None],
    ) -> None:
        self._make = make
        self._options = options
        self._done = done
        self._ahead = 4 * workers
        self._pool: Executor = process_pool(workers) if options.crf else ThreadPoolExecutor(workers)
        self._waiting: deque[tuple[str, Future[None]]] = deque()

    def submit(self, job: MaskJob) -> None:
        """Queue one label map; blocks while too many are under way."""
        try:
            self._waiting.append((job.image_id, self._pool.submit(self._make, job, self._options)))
        except BrokenProcessPool as error:  # a worker died between two label maps
            raise SsrError(*DEAD_CRF) from error
        while len(self._waiting) > self._ahead or (self._waiting and self._waiting[0][1].done()):
            self._take()

    def drain(self) -> None:
        """Wait for all label maps."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        image_id, future = self._waiting.popleft()
        try:
            future.result()
        except ImageError as error:
            self._done(image_id, error)
        except BrokenProcessPool as error:
            raise SsrError(*DEAD_CRF) from error
        else:
            self._done(image_id, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
