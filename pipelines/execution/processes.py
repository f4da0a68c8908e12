"""One process for each device, each with one job; a process that dies costs its job only."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from pipelines.errors import SsrError
from pipelines.execution.interruption import Interrupted, finishing_on_signals, interrupted
from pipelines.execution.pool import THREADS, end_with_parent, environment
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
        work: Importable function of a job and its progress.
        jobs: One job for each process; they must pickle.
        names: Name of each process in messages, such as its device.
        threads: Number of threads of each process's libraries.
        progress: Receives the joined progress.

    Returns:
        The results, in the order of the jobs.

    Raises:
        SsrError: A process failed or died, after the others finished.
        Interrupted: The run was told to stop, and so were the processes.
    """
    context = multiprocessing.get_context("spawn")
    joined = JoinedProgress(progress, len(jobs))
    workers: dict[Connection, _Worker[Result]] = {}
    with environment(dict.fromkeys(THREADS, str(threads))):  # libraries read it when they are loaded
        for job, name in zip(jobs, names, strict=True):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(work, job, theirs), name=f"ssr {name}")
            process.start()
            theirs.close()  # so that the pipe ends when the child exits
            workers[ours] = _Worker(len(workers), name, process)
    all_workers = list(workers.values())
    told = False
    while workers:
        if interrupted() and not told:
            told = True
            for worker in workers.values():
                worker.process.terminate()  # SIGTERM: finish the current work
        for ready in wait(list(workers), _LOOK):
            assert isinstance(ready, Connection)  # noqa: S101 - only connections are waited for
            if not _take(ready, workers[ready], joined):
                ended = workers.pop(ready)
                ended.process.join()
                ready.close()
                joined.count_in(ended.number)
    joined.finish()
    return results_of([(worker.result, worker.error or _death(worker)) for worker in all_workers])


def _take(connection: Connection, worker: _Worker[Any], joined: JoinedProgress) -> bool:
    """Take one message; return False if the process has closed its end."""
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
    """Return the results of several processes if all have one; otherwise raise the worst of their errors.

    Args:
        outcomes: Result, and the error if there is no result.

    Raises:
        SsrError: The worst error; an interruption ranks last, because a fault in one process interrupts the others.
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent stops its children
        try:
            connection.send(("result", work(job, RemoteProgress(connection.send))))
        except SsrError as error:
            connection.send(("error", error))
        except Exception as error:
            where = f"{type(error).__name__}: {error}".splitlines()[0]
            connection.send(("error", SsrError(f"unexpected {where}", "run again without --devices and with --debug")))
        finally:
            connection.close()
