"""Jobs on the actors of a Ray cluster, one for each share of the work list; lost actors are restarted and continue."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pipelines.errors import SsrError, UsageError
from pipelines.execution.interruption import ask_to_stop, interrupted
from pipelines.execution.pool import THREADS
from pipelines.execution.processes import results_of
from pipelines.execution.progress import JoinedProgress, Message, Progress, RemoteProgress
from pipelines.options.scale import ScaleOptions
from pipelines.plugins import VARIABLE

Job = TypeVar("Job")
Result = TypeVar("Result")

_LOOK = 0.5
_GATHER = 0.2


class _Board:
    """Messages from the actors to the driver, and the driver's request to stop."""

    def __init__(self) -> None:
        self._messages: list[tuple[int, Message]] = []
        self._stop = False

    def tell(self, number: int, messages: list[Message]) -> bool:
        """Take messages of one actor, and return whether the run was told to stop."""
        self._messages += [(number, message) for message in messages]
        return self._stop

    def fetch(self) -> list[tuple[int, Message]]:
        """Return the messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def stop(self) -> None:
        """Let the actors finish their current work."""
        self._stop = True


class _Gathered:
    """Buffer of an actor's messages, which saves a remote call for each image."""

    def __init__(self, number: int, tell: Callable[[int, list[Message]], bool]) -> None:
        self._number = number
        self._tell = tell
        self._messages: list[Message] = []
        self._told = 0.0

    def send(self, message: Message) -> None:
        """Take a message, and send all messages if enough time has passed."""
        self._messages.append(message)
        if message[0] == "start" or time.monotonic() - self._told > _GATHER:
            self.flush()

    def flush(self) -> None:
        """Send all messages."""
        messages, self._messages = self._messages, []
        self._told = time.monotonic()
        if self._tell(self._number, messages):
            ask_to_stop()


class _Actor:
    """An actor that runs one job in a process."""

    def run(self, work: Callable[[Any, Progress], Any], job: Any, number: int, board: Any) -> Any:
        """Return the result, or the error for the user."""
        import ray

        gathered = _Gathered(number, lambda who, messages: bool(ray.get(board.tell.remote(who, messages))))
        try:
            return work(job, RemoteProgress(gathered.send))
        except SsrError as error:
            return error
        finally:
            gathered.flush()


def run_on_ray(
    work: Callable[[Job, Progress], Result],
    jobs_for: Callable[[int, str], Sequence[Job]],
    options: ScaleOptions,
    progress: Progress,
) -> list[Result]:
    """Run jobs on a cluster.

    Args:
        work: Function of a job and a progress, importable where the actors run.
        jobs_for: Maps the number of actors and their device, ``cuda`` or ``cpu``, to as many jobs.
        options: Cluster, number of actors and resources of each.
        progress: Receives the joined progress.

    Returns:
        The results, in the order of the jobs.

    Raises:
        UsageError: Ray is not installed, or the cluster lacks the resources of an actor.
        SsrError: An actor failed, or was lost more often than ``options.actor_restarts`` allows; the others finished.
        Interrupted: The run was told to stop, and so were the actors.
    """
    with _cluster(options) as ray:
        gpus, cpus = _share(ray.cluster_resources(), options)
        count = options.actors or _fitting(ray.available_resources(), gpus, cpus)
        jobs = jobs_for(count, "cuda" if gpus else "cpu")
        joined = JoinedProgress(progress, len(jobs))
        inherited = {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}  # other machines lack our environment
        environment = {"env_vars": dict.fromkeys(THREADS, str(max(1, int(cpus)))) | inherited}
        board = ray.remote(_Board).options(num_cpus=0).remote()
        kind = ray.remote(_Actor).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=options.actor_restarts,
            max_task_retries=options.actor_restarts,
            runtime_env=environment,
        )
        actors = [kind.remote() for _ in jobs]
        pending = {
            actor.run.remote(work, job, number, board): number
            for number, (actor, job) in enumerate(zip(actors, jobs, strict=True))
        }
        found: dict[int, Any] = {}
        told = False

        def listen() -> None:
            for number, (name, arguments) in ray.get(board.fetch.remote()):
                joined.receive(number, name, arguments)

        while pending:
            if interrupted() and not told:
                told = True
                ray.get(board.stop.remote())
            ready, _ = ray.wait(list(pending), timeout=_LOOK)
            listen()
            for reference in ready:
                number = pending.pop(reference)
                found[number] = _outcome(ray, reference)
                joined.count_in(number)
                ray.kill(actors[number])  # frees its resources for waiting actors
        listen()
        joined.finish()
    outcomes = [found[number] for number in range(len(jobs))]
    nothing = SsrError("an actor came to no result")
    return results_of([(None, each) if isinstance(each, SsrError) else (each, nothing) for each in outcomes])


def _outcome(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayActorError as error:
        reason = str(error).strip().splitlines()[0]
        return SsrError(f"an actor was lost too often: {reason}", "run the same command to go on; --actor-restarts allows more")
    except ray.exceptions.RayTaskError as error:
        where = f"{type(error.cause).__name__}: {error.cause}".splitlines()[0]
        return SsrError(f"unexpected {where} in an actor", "run again without --engine ray and with --debug")


@contextmanager
def _cluster(options: ScaleOptions) -> Iterator[Any]:
    """Yield Ray, connected to a cluster; without an address, a new one on this machine."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray, which is not installed", 'pip install "ssr-wsss[ray]"') from error
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if options.address is None:
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=options.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"cannot join a Ray cluster at {options.address or 'this machine'}: {reason}", "--address") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _share(cluster: dict[str, float], options: ScaleOptions) -> tuple[float, float]:
    """Return the GPUs and cores of an actor."""
    gpus = options.actor_gpus
    if gpus is None:
        gpus = 1.0 if cluster.get("GPU", 0) else 0.0
    for name, wanted, flag in (("GPU", gpus, "--actor-gpus"), ("CPU", options.actor_cpus, "--actor-cpus")):
        if wanted > cluster.get(name, 0):
            raise UsageError(f"an actor takes {wanted:g} {name}s, the cluster has {cluster.get(name, 0):g}", flag)
    return gpus, options.actor_cpus


def _fitting(free: dict[str, float], gpus: float, cpus: float) -> int:
    by_cores = int(free.get("CPU", 0) / cpus)
    by_gpus = int(free.get("GPU", 0) / gpus) if gpus else by_cores
    return max(1, min(by_cores, by_gpus))
