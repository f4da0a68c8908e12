"""Options of ``[scale]``: how the stages that take image by image are spread over processes and machines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.sources import Options, option


class ScaleOptions(Options):
    """``[scale]``: shares of the work list, devices, Ray; none of these changes a result."""

    shard: Annotated[
        str | None,
        option(
            "Part of the image list, INDEX/COUNT such as 0/4; without it, as torchrun, srun or a Slurm array assigns, or all."
        ),
    ] = None
    devices: Annotated[
        str | None,
        option("One process for each device, separated by commas: 0,1 are two GPUs, cpu,cpu are two processes on the CPU."),
    ] = None
    engine: Annotated[
        Literal["local", "ray"],
        option("What runs the processes: this machine (local), or actors on a Ray cluster (ray; needs ssr-wsss[ray])."),
    ] = "local"
    address: Annotated[
        str | None,
        option("Ray: address of the cluster, such as auto or ray://HOST:10001; without it, Ray is started on this machine."),
    ] = None
    actors: Annotated[
        int, Field(ge=0, description="Ray: number of actors, each with its part of the image list; 0 takes as many as fit.")
    ] = 0
    actor_gpus: Annotated[
        float | None, Field(ge=0, description="Ray: GPUs of an actor, fractions allowed; without it, 1 on a cluster with GPUs.")
    ] = None
    actor_cpus: Annotated[float, Field(gt=0, description="Ray: CPU cores of an actor, fractions allowed.")] = 1.0
    actor_restarts: Annotated[int, Field(ge=0, description="Ray: how often a lost actor is restarted.")] = 3

    @property
    def shares_out(self) -> bool:
        """Whether this process starts others that take shares of the image list."""
        return self.devices is not None or self.engine != "local"
