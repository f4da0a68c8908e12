"""Workers that write label map PNGs while the encoders run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ImageError, SsrError
from pipelines.execution.pool import process_pool

DEAD_CRF = ("a CRF process died (killed, or out of memory)", "run again to go on; fewer --workers need less")


@dataclass(frozen=True)
class MaskJob:
    """One label map to make.

    Attributes:
        image_id: Id of the image.
        image_path: The image; opened only for a boundary refinement.
        maps: Maps on the token grid, fp16: a refined CAM ``(K, h, w)``, or logits ``(C + 1, h, w)``, background first.
        labels: Class indices of the K maps of a CAM; () for logits, which have a map for every class.
        size: ``(H, W)`` of the image.
        target: Path of the PNG.
        orient: Whether the image is turned by its EXIF orientation.
        photo: Fingerprint of the image for the PNG; empty if a store holds it.
        probabilities: Class probabilities ``(C + 1, h', w')`` fp16 that are mixed into the scores of a CAM, or None.
    """

    image_id: str
    image_path: Path
    maps: NDArray[np.float16]
    labels: tuple[int, ...]
    size: tuple[int, int]
    target: Path
    orient: bool = False
    photo: str = ""
    probabilities: NDArray[np.float16] | None = None


class LabelMapWorkers:
    """Background workers that make label maps, a limited number at a time; the end of the block waits for all of them.

    Args:
        make: Makes one label map; for processes it must be importable, or a `functools.partial` of an importable function.
        workers: Number of processes or threads.
        done: Called for each label map, with the error of a bad image or None.
        processes: Whether to use processes in place of threads, for work that holds the interpreter lock.
    """

    def __init__(
        self,
        make: Callable[[MaskJob], None],
        workers: int,
        done: Callable[[str, ImageError | None], None],
        *,
        processes: bool,
    ) -> None:
        self._make = make
        self._done = done
        self._workers = workers
        self._processes = processes
        self._waiting: deque[tuple[str, Future[None]]] = deque()

    @cached_property
    def _pool(self) -> Executor:
        return process_pool(self._workers) if self._processes else ThreadPoolExecutor(self._workers)

    def start(self) -> None:
        """Start what the workers need; otherwise the first label map waits for it."""
        _ = self._pool

    def submit(self, job: MaskJob) -> None:
        """Queue one label map, and wait while too many are queued."""
        try:
            self._waiting.append((job.image_id, self._pool.submit(self._make, job)))
        except BrokenProcessPool as error:  # a worker died between two label maps
            raise SsrError(*DEAD_CRF) from error
        while len(self._waiting) > 4 * self._workers or (self._waiting and self._waiting[0][1].done()):
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
        try:
            if kind is None:
                self.drain()
        finally:
            if "_pool" in vars(self):  # a finished stage has none
                self._pool.shutdown(wait=True, cancel_futures=True)
