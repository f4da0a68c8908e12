"""Options of ``[scale]``: how the stages that take image by image are spread over processes and machines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.sources import Options, option


class ScaleOptions(Options):
    """``[scale]``: shares of the work list, devices, Ray; none of these changes a result."""

    shard: Annotated[
        str | None,
        option("share of the work list, INDEX/COUNT from 0/4 to 3/4; default: torchrun's, srun's or a Slurm array's, else all"),
    ] = None
    devices: Annotated[
        str | None, option("a process on each of these devices, separated by commas: 0,1 are GPUs; cpu,cpu are two on the CPU")
    ] = None
    engine: Annotated[Literal["local", "ray"], option("ray = actors on a Ray cluster; it takes ssr[ray]")] = "local"
    address: Annotated[
        str | None, option("ray: cluster to join, such as auto or ray://HOST:10001; default: one of its own on this machine")
    ] = None
    actors: Annotated[int, Field(ge=0, description="ray: actors, each with a share of the work list; 0 = as many as fit")] = 0
    actor_gpus: Annotated[
        float | None, Field(ge=0, description="ray: GPUs of each actor, parts too; default: 1 where the cluster has GPUs")
    ] = None
    actor_cpus: Annotated[float, Field(gt=0, description="ray: cores of each actor, parts too")] = 1.0
    actor_restarts: Annotated[int, Field(ge=0, description="ray: times that a lost actor is started again")] = 3
