"""One process a device, each with a job of its own; a process that dies costs its job only."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from pipelines.errors import SsrError
from pipelines.execution.interruption import Interrupted, finishing_on_signals, interrupted
from pipelines.execution.pool import THREADS, end_with_parent
from pipelines.execution.progress import JoinedProgress, Progress, RemoteProgress

Job = TypeVar("Job")
Result = TypeVar("Result")

_LOOK = 0.2


@dataclass
class _Worker(Generic[Result]):
    number: int
    name: str
    process: BaseProcess
    result: Result | None = None
    error: SsrError | None = None


def run_processes(
    work: Callable[[Job, Progress], Result], jobs: Sequence[Job], names: Sequence[str], threads: int, progress: Progress
) -> list[Result]:
    """Run jobs at once, each in a fresh process.

    Args:
        work: Importable; gets the job and a progress of its own.
        jobs: One a process; they must pickle.
        names: What to call each process in a message, such as its device.
        threads: Threads of each process's libraries.
        progress: Receives all of them together.

    Returns:
        The results, in the order of the jobs.

    Raises:
        SsrError: One failed or died, after the others have come to their end.
        Interrupted: The run was asked to stop, and so were they.
    """
    context = multiprocessing.get_context("spawn")
    joined = JoinedProgress(progress, len(jobs))
    workers: dict[Connection, _Worker[Result]] = {}
    with _environment(threads):
        for job, name in zip(jobs, names, strict=True):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(work, job, theirs), name=f"ssr {name}")
            process.start()
            theirs.close()  # close our copy, so that the pipe hits EOF when the child exits
            workers[ours] = _Worker(len(workers), name, process)
    all_workers = list(workers.values())
    told = False
    while workers:
        if interrupted() and not told:
            told = True
            for worker in workers.values():
                worker.process.terminate()  # SIGTERM: finish what is under way
        for ready in wait(list(workers), _LOOK):
            assert isinstance(ready, Connection)  # noqa: S101 - nothing else is waited for
            if not _take(ready, workers[ready], joined):
                ended = workers.pop(ready)
                ended.process.join()
                ready.close()
                joined.count_in(ended.number)
    joined.finish()
    return results_of([(worker.result, worker.error or _death(worker)) for worker in all_workers])


def _take(connection: Connection, worker: _Worker[Any], joined: JoinedProgress) -> bool:
    """Take one message; False where the process has closed its end."""
    try:
        kind, content = connection.recv()
    except (EOFError, OSError):
        return False
    if kind == "result":
        worker.result = content
    elif kind == "error":
        worker.error = content
    else:
        joined.receive(worker.number, kind, content)
    return True


def results_of(outcomes: Sequence[tuple[Result | None, SsrError]]) -> list[Result]:
    """The results of several processes, if all have one; else the worst of their errors is raised.

    Args:
        outcomes: Result, and the error that counts where there is no result.

    Raises:
        SsrError: Of those without a result; the wish to stop comes last, since a fault makes others follow it.
    """
    missing = [error for result, error in outcomes if result is None]
    if missing:
        raise min(missing, key=lambda error: isinstance(error, Interrupted))
    return [result for result, _ in outcomes if result is not None]


def _death(worker: _Worker[Any]) -> SsrError:
    code = worker.process.exitcode
    how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    return SsrError(
        f"the process on {worker.name} died ({how}); the others came to the end of their shares",
        "run the same command to go on",
    )


def _child(work: Callable[[Job, Progress], Result], job: Job, connection: Connection) -> None:
    end_with_parent()
    with finishing_on_signals(lambda _: None):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent says what to do
        try:
            connection.send(("result", work(job, RemoteProgress(connection.send))))
        except SsrError as error:
            connection.send(("error", error))
        except Exception as error:
            where = f"{type(error).__name__}: {error}".splitlines()[0]
            connection.send(("error", SsrError(f"unexpected {where}", "run again without --devices and with --debug")))
        finally:
            connection.close()


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Libraries read the number of their threads when they are loaded, before a child could say it."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
