"""Runs a per-image stage on several devices or a Ray cluster; each worker processes a shard of the image list.

Workers are independent: none waits for another, and a worker that dies loses only its own shard. When all have ended, their
outputs are merged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipelines.errors import UsageError
from pipelines.execution.pool import resolve_workers
from pipelines.execution.processes import run_processes
from pipelines.execution.progress import Progress, Silent
from pipelines.options.scale import ScaleOptions
from pipelines.stages.merge import merge_failures, merge_outputs, merge_scores
from pipelines.stores.shard import Shard, shard_folders
from pipelines.workdir.counts import Counts
from pipelines.workdir.workspace import REPORTS, Workspace


class PerImageStage(Protocol):
    """The module of a stage that processes image by image."""

    @property
    def outputs(self) -> Callable[..., tuple[Path, ...]]:
        """Function that returns the stores and folders of `run`, and has the same arguments without progress."""

    @property
    def run(self) -> Callable[..., Any]:
        """Function that runs the stage, with the arguments workspace, options and progress."""


@dataclass(frozen=True)
class Job:
    """A stage and its arguments, which can be pickled for another process.

    Attributes:
        run: ``run`` of the stage's module.
        workspace: Work directory and dataset.
        arguments: Arguments of ``run`` between workspace and progress.
        outputs: Stores and folders that the stage writes; none for ``ssr eval``, whose counts are added up instead.
    """

    run: Callable[..., Any]
    workspace: Workspace
    arguments: tuple[Any, ...]
    outputs: tuple[Path, ...]


def job_of(stage: PerImageStage, workspace: Workspace, *arguments: Any) -> Job:
    """Return the job of a stage's module."""
    return Job(stage.run, workspace, arguments, stage.outputs(workspace, *arguments))


def run_job(job: Job, progress: Progress) -> Any:
    """Call the stage."""
    return job.run(job.workspace, *job.arguments, progress)


def run(job: Job, options: ScaleOptions, progress: Progress | None = None) -> Any:
    """Run a stage on several devices or on a cluster.

    Args:
        job: The stage.
        options: Devices or cluster.
        progress: Receives the progress of all processes.

    Returns:
        The sum of `Counts` over all processes; for ``eval`` its evaluations.

    Raises:
        UsageError: The options contradict each other, or the stage refuses them.
        SsrError: The stage failed, or a process died; it is raised after the other processes have ended.
    """
    progress = progress or Silent()
    if job.workspace.shard is not None:
        what = "--devices" if options.devices is not None else "--engine ray"
        raise UsageError(f"{what} divides the whole work list, found shard {job.workspace.shard}", f"--shard or {what}")
    if options.engine == "ray":
        if options.devices is not None:
            raise UsageError("Ray chooses the devices of its actors", "--devices or --engine ray")
        from pipelines.execution.ray_engine import run_on_ray

        def jobs_for(count: int, device: str) -> list[Job]:
            _prepare(job, count, device)
            return _jobs_of_shards(job, [device] * count, max(1, int(options.actor_cpus)))

        results = run_on_ray(run_job, jobs_for, options, progress)
    else:
        devices = _devices(options.devices or "")
        cores = max(1, resolve_workers(0) // len(devices))
        _prepare(job, len(devices), devices[0])
        results = run_processes(run_job, _jobs_of_shards(job, devices, cores), _names(devices), cores, progress)
    return _merged(job, results)


def _prepare(job: Job, count: int, device: str) -> None:
    """Merge shards of another count; with ``force``, remove existing outputs after the stage has checked its options."""
    if any(shard.count != count for output in job.outputs for shard, _ in shard_folders(output.parent)):
        merge_outputs(job.outputs)
    if job.workspace.force and job.outputs:
        options = job.workspace.run.model_copy(update={"device": device})
        empty = dataclasses.replace(job.workspace, no_images=True, run=options)
        run_processes(run_job, [dataclasses.replace(job, workspace=empty)], [device], 1, Silent())
    if not job.outputs:
        for _, folder in shard_folders(job.workspace.work):
            for counted in (folder / REPORTS).glob("*.json"):  # left by an interrupted run
                counted.unlink()


def _jobs_of_shards(job: Job, devices: Sequence[str], cores: int) -> list[Job]:
    workspace, jobs = job.workspace, []
    for index, device in enumerate(devices):
        options = workspace.run.model_copy(update={"device": device, "workers": workspace.run.workers or cores})
        share = dataclasses.replace(workspace, shard=Shard(index, len(devices)), run=options, force=False)
        jobs.append(dataclasses.replace(job, workspace=share))
    return jobs


def _merged(job: Job, results: Sequence[Any]) -> Any:
    work = job.workspace.work
    merge_outputs(job.outputs)
    merge_failures(work)
    if not job.outputs:
        return [evaluation for merged in merge_scores(work) for evaluation in merged.evaluations]
    return Counts(*(sum(getattr(counts, key) for counts in results) for key in ("done", "skipped", "failed")))


def _devices(text: str) -> list[str]:
    devices = [f"cuda:{name}" if name.isdecimal() else name for name in (part.strip() for part in text.split(","))]
    if not all(devices):
        raise UsageError(f"expected devices such as 0,1 or cpu,cpu, found {text!r}", "--devices")
    return devices


def _names(devices: Sequence[str]) -> list[str]:
    """Number devices that occur twice: ``cpu`` becomes ``cpu (1 of 2)`` and ``cpu (2 of 2)``."""
    return [
        device if devices.count(device) == 1 else f"{device} ({devices[: index + 1].count(device)} of {devices.count(device)})"
        for index, device in enumerate(devices)
    ]
