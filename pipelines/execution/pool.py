"""Parallel work on many images, with a limited number of them in memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from pipelines.errors import ImageError, SsrError
from pipelines.execution.interruption import SIGNALS

Item = TypeVar("Item")
Result = TypeVar("Result")

DEAD_WORKER = ("a worker process died (killed, or out of memory)", "run again to go on; fewer --workers need less memory")


def resolve_workers(workers: int) -> int:
    """Return the number of workers; 0 = one process for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers or cores


THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Number of threads that a library starts, by the variable that it reads when it is loaded."""

PRELOADED = (
    "pipelines.execution.fork_server",
    "pipelines.stages.superpixels",
    "pipelines.stages.sample",
    "pipelines.method.label_maps",
    "pipelines.ops.crf",
    "pydensecrf.densecrf",
)
"""Modules that workers run, and what these import late. None of them imports torch, which would take four times as long."""


def _set_up_worker(variables: dict[str, str]) -> None:
    """Limit each library to one thread, because there is one process for each core, and leave signals to the parent."""
    os.environ.clear()
    os.environ.update(variables | dict.fromkeys(THREADS, "1"))
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process when its parent ends for any reason; otherwise a pool's worker would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True, name="end with parent").start()


class _Pool(ProcessPoolExecutor):
    """A pool that is broken, as it is by a dead worker, when the fork server was killed a moment ago and starts no worker."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        try:
            return super().submit(fn, *args, **kwargs)
        except ConnectionError as error:
            raise BrokenProcessPool(f"no worker was started: {error}") from error


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of processes without inherited locks, threads, GPU contexts or open stores.

    On Linux they are forked from one process for all pools, which has only imported their libraries; elsewhere they are fresh.
    They see the environment variables of this moment.
    """
    # A run that is stopped at once leaves its semaphores to Python's resource tracker, which would print a warning.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    return _Pool(workers, _context(), initializer=_set_up_worker, initargs=(dict(os.environ),))


def _context() -> BaseContext:
    """Return the way in which worker processes start, after starting the fork server if that is the way."""
    if sys.platform != "linux":  # macOS: its libraries may break in a fork
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with environment(dict.fromkeys(THREADS, "1") | {"PYTHONPATH": os.pathsep.join(sys.path)}):  # the same modules as here
        try:
            forkserver.ensure_running()
        except ChildProcessError:  # the server is that of the process that this one was forked from
            return multiprocessing.get_context("spawn")
    return context


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that start within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def map_bounded(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Result | ImageError]]:
    """Apply a function like ``pool.map``, but read ``items`` only ``ahead`` far and yield image errors as values.

    Args:
        pool: Thread or process pool.
        function: Function of one item; for processes it must be importable.
        items: Any iterable of any length.
        ahead: Largest number of items that are read and not yielded yet.

    Yields:
        ``(item, result)`` in the order of the items; an `ImageError` replaces the result.

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


def prefetch(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result | ImageError]]:
    """Run ``function`` in threads ahead of the consumer, so that images are decoded while the encoders run.

    There are more threads on more cores, because a thread of `ssr masks` waits for the superpixels that a process computes.
    """
    threads = min(max(4, resolve_workers(0)), 16)
    with ThreadPoolExecutor(threads) as pool:
        yield from map_bounded(pool, function, items, ahead=8 + 2 * threads)


def usable(
    function: Callable[[Item], Result], items: Iterable[Item], bad: Callable[[Item, ImageError], None]
) -> Iterator[Result]:
    """Yield only the results of `prefetch`.

    Args:
        function: Decodes one item, in a thread.
        items: Any iterable.
        bad: Called with each item whose image cannot be used, and with the error.
    """
    for item, result in prefetch(function, items):
        if isinstance(result, ImageError):
            bad(item, result)
        else:
            yield result
