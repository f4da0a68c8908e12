"""`ssr superpixels`: SLIC of every photo, in processes, into one HDF5 store."""

from __future__ import annotations

from collections.abc import Iterator
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
from pipelines.stages.counts import Counts
from pipelines.stages.workspace import Workspace
from pipelines.stores.array_store import ArrayReader, ArrayWriter, store_exists

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
    with ArrayWriter(workspace.superpixels) as writer:
        manifest = workspace.settle(workspace.superpixels, STAGE, options.model_dump(mode="json"), writer.clear)
        done = superpixel_ids(workspace.superpixels)
        todo = [sample for sample in workspace.dataset.samples if sample.image_id not in done]
        counts = Counts(skipped=len(workspace.dataset.samples) - len(todo))
        failures = workspace.failures(STAGE, progress)
        progress.start("superpixels", len(workspace.dataset.samples), counts.skipped)
        with process_pool(min(workers, max(1, len(todo)))) as pool:
            for job, result in map_bounded(pool, partial(_superpixels, options=options), _jobs(todo), ahead=4 * workers):
                if isinstance(result, ImageError):
                    counts.failed += 1
                    failures.add(job.image_id, result)
                else:
                    writer.add(job.image_id, result, {"size": list(result.shape), "count": int(result.max()) + 1})
                    counts.done += 1
                progress.advance()
        progress.finish()
    manifest.counts, manifest.complete = counts.as_dict(), True
    manifest.write(workspace.superpixels.with_suffix(".json"))
    return counts


def superpixel_ids(store: Path) -> set[str]:
    """Images that the store holds."""
    if not store_exists(store):
        return set()
    with ArrayReader(store) as reader:
        return set(reader.ids())


def _jobs(samples: list[Sample]) -> Iterator[_Job]:
    for sample in samples:
        yield _Job(sample.image_id, sample.image_path)


def _superpixels(job: _Job, options: SuperpixelsOptions) -> NDArray[Any]:
    image = np.asarray(load_image(job.path))
    return slic_superpixels(image, options.segments, options.compactness, options.iterations)
