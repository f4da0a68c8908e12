"""`ssr superpixels`: computes SLIC of every image, in processes, into one HDF5 store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Sample
from pipelines.datasets.image import fingerprint, load_image
from pipelines.errors import ImageError
from pipelines.execution.pool import map_bounded, process_pool, resolve_workers
from pipelines.execution.progress import Progress, Silent
from pipelines.ops.slic import slic_superpixels
from pipelines.options.stages import SuperpixelsOptions
from pipelines.stores.image_arrays import photo_attributes
from pipelines.workdir.counts import Counts
from pipelines.workdir.workspace import Workspace, oriented

STAGE = "superpixels"


@dataclass(frozen=True)
class _Job:
    image_id: str
    path: Path
    orient: bool


def outputs(workspace: Workspace, options: SuperpixelsOptions) -> tuple[Path, ...]:
    """Return the stores that `run` writes."""
    return (workspace.superpixels,)


def run(workspace: Workspace, options: SuperpixelsOptions, progress: Progress | None = None) -> Counts:
    """Compute the superpixels of every image that has none.

    Args:
        workspace: Names the images and the store.
        options: SLIC's options.
        progress: Receives each image.

    Returns:
        Images done, skipped and failed.

    Raises:
        UsageError: The store was made with other options and ``workspace.force`` is off.
        TooManyFailures: There are more bad images than allowed; what was computed is kept.
    """
    progress = progress or Silent()
    workers = resolve_workers(workspace.run.workers)
    settings = options.model_dump(mode="json") | oriented(workspace)
    with workspace.output(STAGE, workspace.superpixels, settings, progress) as output:
        todo = output.todo()
        if todo:
            with process_pool(min(workers, len(workspace.samples))) as pool:
                work = partial(_superpixels, options=options)
                for job, result in map_bounded(pool, work, _jobs(todo), ahead=4 * workers):
                    bad = result if isinstance(result, ImageError) else None
                    if not isinstance(result, ImageError):
                        made, photo = result
                        attributes = photo_attributes(made.shape, photo, count=int(made.max()) + 1)
                        output.writer.add(job.image_id, made, attributes)
                    output.made(job.image_id, bad)
    return output.counts


def _jobs(samples: Iterable[Sample]) -> Iterator[_Job]:
    for sample in samples:
        yield _Job(sample.image_id, sample.image_path, sample.orient)


def _superpixels(job: _Job, options: SuperpixelsOptions) -> tuple[NDArray[Any], str]:
    """Compute the superpixels ``(H, W)`` and the fingerprint of an image."""
    image = np.asarray(load_image(job.path, job.orient))
    made = slic_superpixels(image, options.segments, options.compactness, options.iterations)
    return made, fingerprint(job.path)
