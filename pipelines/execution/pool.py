"""Work on many images at once, with a bounded number of them under way."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pipelines.errors import ImageError, SsrError

Item = TypeVar("Item")
Result = TypeVar("Result")

DEAD_WORKER = ("a worker process died (killed, or out of memory)", "run again to go on; fewer --workers need less memory")


def resolve_workers(workers: int) -> int:
    """0 = one process a core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers or cores


def _single_threaded() -> None:
    """One process a core: libraries inside a worker must not start threads of their own."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Fresh processes (spawn): no inherited locks, threads, GPU contexts or open stores."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_single_threaded)


def map_bounded(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Result | ImageError]]:
    """Like ``pool.map``, but reads ``items`` only ``ahead`` far and hands image errors over as values.

    Args:
        pool: Thread or process pool.
        function: Work on one item; for processes it must be importable.
        items: Any iterable, however long.
        ahead: Items under way at most.

    Yields:
        ``(item, result)`` in the order of the items; an `ImageError` takes the place of the result.

    Raises:
        SsrError: A worker process died.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    iterator = iter(items)
    try:
        for item in iterator:
            waiting.append((item, _submit(pool, function, item)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield first, _outcome(future)
        while waiting:
            first, future = waiting.popleft()
            yield first, _outcome(future)
    finally:
        for _, future in waiting:
            future.cancel()


def _submit(pool: Executor, function: Callable[[Item], Result], item: Item) -> Future[Result]:
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:  # a worker died between two results
        raise SsrError(*DEAD_WORKER) from error


def _outcome(future: Future[Any]) -> Any:
    try:
        return future.result()
    except ImageError as error:
        return error
    except BrokenProcessPool as error:
        raise SsrError(*DEAD_WORKER) from error


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 4, ahead: int = 16
) -> Iterator[tuple[Item, Result | ImageError]]:
    """Run ``function`` in threads ahead of the consumer: decoding hides behind the encoders."""
    with ThreadPoolExecutor(threads) as pool:
        yield from map_bounded(pool, function, items, ahead)
