"""`ssr superpixels`: SLIC of every photo, in processes, into one HDF5 store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.errors import ImageError
from pipelines.execution.pool import map_bounded, process_pool, resolve_workers
from pipelines.execution.progress import Progress, Silent
from pipelines.ops.slic import slic_superpixels
from pipelines.options.stages import SuperpixelsOptions
from pipelines.workdir.counts import Counts
from pipelines.workdir.image_run import Run
from pipelines.workdir.workspace import Workspace

STAGE = "superpixels"


@dataclass(frozen=True)
class _Job:
    image_id: str
    path: Path


def run(workspace: Workspace, options: SuperpixelsOptions, progress: Progress | None = None) -> Counts:
    """Compute the superpixels of every image that has none yet.

    Args:
        workspace: Where images come from and the store goes.
        options: SLIC's options.
        progress: Told about each image.

    Returns:
        Images done, skipped and failed.

    Raises:
        UsageError: The store was made with other options and ``workspace.force`` is off.
        TooManyFailures: More bad images than allowed; what was computed is kept.
    """
    progress = progress or Silent()
    workers = resolve_workers(workspace.run.workers)
    with ExitStack() as stack:
        writer = stack.enter_context(workspace.writer(workspace.superpixels))
        manifest = workspace.settle(workspace.superpixels, STAGE, options.model_dump(mode="json"), writer.clear)
        there = workspace.committed(workspace.superpixels, stack)
        run = Run(workspace, STAGE, progress)
        progress.start(STAGE, len(workspace.samples))
        pool = stack.enter_context(process_pool(min(workers, max(1, len(workspace.samples)))))
        jobs = _jobs(run.unfinished(lambda sample: sample.image_id in there))
        for job, result in map_bounded(pool, partial(_superpixels, options=options), jobs, ahead=4 * workers):
            if not isinstance(result, ImageError):
                writer.add(job.image_id, result, {"size": list(result.shape), "count": int(result.max()) + 1})
            run.made(job.image_id, result if isinstance(result, ImageError) else None)
        progress.finish()
    workspace.finish(workspace.superpixels, manifest, run.counts)
    return run.counts


def _jobs(samples: Iterable[Sample]) -> Iterator[_Job]:
    for sample in samples:
        yield _Job(sample.image_id, sample.image_path)


def _superpixels(job: _Job, options: SuperpixelsOptions) -> NDArray[Any]:
    image = np.asarray(load_image(job.path))
    return slic_superpixels(image, options.segments, options.compactness, options.iterations)
