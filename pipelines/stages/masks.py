"""`ssr masks`: makes superpixels, CAMs, refined CAMs and pseudo-masks of each image in one pass of each encoder.

It writes the same bytes as `ssr superpixels`, `ssr cams` and `ssr refine`, and resumes from whatever they have written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.errors import ImageError
from pipelines.execution.batches import batches_by, one_behind
from pipelines.execution.devices import resolve_batch_size, resolve_device
from pipelines.execution.fitting import fitting
from pipelines.execution.interruption import until_interrupted
from pipelines.execution.pool import process_pool, resolve_workers, usable
from pipelines.execution.progress import Progress, Silent
from pipelines.method.cam_extractor import encode_and_extract, one_pass_scales
from pipelines.method.composition import refined_cams
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.loading import FrozenModels
from pipelines.method.parts_in_use import cam_needs, refine_needs
from pipelines.method.photo import Photo, by_photo, shapes, too_large
from pipelines.ops.transfer import fetched, sent
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.stages.refine.target import Target, TargetJob, open_target
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.image_arrays import photo_attributes, read_cam, superpixels_of
from pipelines.stores.manifest import digest
from pipelines.workdir.counts import Counts
from pipelines.workdir.output import Output, Todo
from pipelines.workdir.photos import seen, slic_in
from pipelines.workdir.settings import cam_settings, model_sources
from pipelines.workdir.workspace import Workspace, oriented

STAGE = "masks"


def outputs(workspace: Workspace, *_: object) -> tuple[Path, ...]:
    """Return all stores and folders that `run` writes."""
    return workspace.superpixels, workspace.cams, workspace.refined, workspace.masks


def run(
    workspace: Workspace,
    superpixels: SuperpixelsOptions,
    cams: CamsOptions,
    refine: RefineOptions,
    progress: Progress | None = None,
) -> Counts:
    """Make the pseudo-masks of a work directory, with the superpixels and CAMs for them.

    Args:
        workspace: Names the images and outputs.
        superpixels: SLIC's options; used if a part needs superpixels.
        cams: Read-out, scales, alignment heads.
        refine: Affinity, masks, background rule, boundary refinement.
        progress: Receives each mask.

    Returns:
        Masks done, skipped and failed.

    Raises:
        UsageError: An output was made with other options, and ``workspace.force`` is off.
        TooManyFailures: There are more bad images than allowed; what was computed is kept.
    """
    progress = progress or Silent()
    device = resolve_device(workspace.run.device)
    cams = cams.model_copy(update={"ckpt": workspace.heads(cams.ckpt)})
    needs = cam_needs(cams) | refine_needs(refine)
    sources = model_sources(workspace, needs, cams.ckpt)
    superpixel_settings = superpixels.model_dump(mode="json") | oriented(workspace)
    made_from = {"superpixels": digest(superpixel_settings)}
    settings = cam_settings(workspace, cams, sources, made_from)

    @cache
    def encoders() -> Encoders:
        models = FrozenModels(sources, device, workspace.run.precision)
        return models.encoders(needs, Blocks(clip_attention=refine.clip_blocks, dino_attention=refine.dino_blocks), cams)

    with ExitStack() as stack:
        superpixel_output: Output | None = None
        if "superpixels" in needs:
            output = workspace.output(
                "superpixels", workspace.superpixels, superpixel_settings, Silent(), prepare=sources.fetch
            )
            superpixel_output = stack.enter_context(output)  # weights are fetched before --force removes anything
        cam_output = stack.enter_context(workspace.output("cams", workspace.cams, settings, Silent(), prepare=sources.fetch))
        target = Target(refine, workspace.work)
        job = stack.enter_context(open_target(workspace, target, sources, progress, made_from | {"cams": digest(settings)}))
        progress.start(STAGE, len(workspace.samples))
        todo = Todo(_wanted(workspace.samples, superpixel_output, cam_output, job))
        if todo:  # otherwise no encoder is needed
            pool = stack.enter_context(process_pool(min(resolve_workers(workspace.run.workers), len(workspace.samples))))
            slic = partial(slic_in, pool, superpixels)
            stored = superpixel_output.committed(workspace.superpixels) if superpixel_output is not None else ()
            load = partial(_load, encoders(), stored if isinstance(stored, ArrayReader) else None, slic, cams)
            photos = usable(load, todo, partial(_leave_out, job.output))
            batches = batches_by(photos, lambda item: shapes(item.photo), resolve_batch_size(workspace.run, device))
            make = partial(_made, encoders(), cam_output.committed(workspace.cams), cams, refine)
            fit = fitting(make, batches, lambda item: _leave_out(job.output, item.work, too_large(item.photo)))
            for made in one_behind(fit):
                _commit(made)
        job.makers.drain()
        progress.finish()
    return job.output.counts


@dataclass(frozen=True)
class _Work:
    """An image, and the outputs that lack it; None for an output that has it."""

    sample: Sample
    superpixels: Output | None
    cams: Output | None
    job: TargetJob | None


@dataclass(frozen=True)
class _Loaded:
    """A decoded image, and its superpixels ``(H, W)`` if they were computed in this run."""

    work: _Work
    photo: Photo
    superpixels: NDArray[np.uint16] | None


def _wanted(samples: Iterable[Sample], superpixels: Output | None, cams: Output, job: TargetJob) -> Iterator[_Work]:
    """Yield the images that some output lacks. The job itself queues an image whose mask alone is missing."""
    for sample in until_interrupted(samples):
        lacks_superpixels = superpixels is not None and not _counted(superpixels, superpixels.holds(sample))
        lacks_cam = not _counted(cams, cams.holds_labels(sample))
        lacks_refined = job.wants(sample)
        if lacks_superpixels or lacks_cam or lacks_refined:
            lacking = superpixels if lacks_superpixels else None, cams if lacks_cam else None
            yield _Work(sample, *lacking, job if lacks_refined else None)


def _counted(output: Output, holds: bool) -> bool:
    """Count an image that an output holds, and return whether it does."""
    if holds:
        output.skipped()
    else:
        output.begin()
    return holds


def _load(
    encoders: Encoders,
    stored: ArrayReader | None,
    slic: Callable[[NDArray[np.uint8]], NDArray[np.uint16]],
    cams: CamsOptions,
    work: _Work,
) -> _Loaded:
    """Decode an image once, for SLIC and the encoders."""
    image = load_image(work.sample.image_path, work.sample.orient)
    sample = seen(work.sample)
    if work.superpixels is None:
        ids = superpixels_of(stored, sample.image_id, sample.photo)
        return _Loaded(work, encoders.photo(sample, image, ids, one_pass_scales(cams)), None)
    made = slic(np.asarray(image))
    return _Loaded(work, encoders.photo(sample, image, made, one_pass_scales(cams)), made)


def _leave_out(output: Output, work: _Work, error: ImageError) -> None:
    """Count a bad image in every output that lacks it; the log of failures gets one line."""
    for lacking in (work.superpixels, work.cams):
        if lacking is not None:
            lacking.counts.failed += 1
    output.made(work.sample.image_id, error)


@dataclass(frozen=True)
class _Made:
    """A batch, with its CAMs and refined CAMs ``(T, N)`` fp16."""

    batch: Sequence[_Loaded]
    cams: Callable[[], NDArray[np.float16]]
    refined: Callable[[], NDArray[np.float16]]


def _made(
    encoders: Encoders,
    stored: ArrayReader | tuple[()],
    cams: CamsOptions,
    refine: RefineOptions,
    batch: Sequence[_Loaded],
) -> _Made:
    """Make the CAMs of a batch as they are stored, and refine them."""
    evidence, maps = encode_and_extract(encoders, [item.photo for item in batch], cams)
    halves = _with_stored(maps.flatten(1).half(), [item.work for item in batch], stored)  # (T, N)
    return _Made(batch, fetched(halves), fetched(refined_cams(evidence, halves.float(), refine).half()))


def _with_stored(halves: Tensor, works: Sequence[_Work], stored: ArrayReader | tuple[()]) -> Tensor:
    """Return the maps ``(T, N)`` of a batch, with the stored CAM of each image that has one."""
    if not isinstance(stored, ArrayReader) or all(work.cams is not None for work in works):
        return halves
    rows: list[int] = []
    kept: list[Tensor] = []
    start = 0
    for work in works:
        end = start + len(work.sample.labels)
        if work.cams is None:
            cam = read_cam(stored, work.sample.image_id)[0]  # (K, h, w)
            rows += range(start, end)
            kept.append(torch.from_numpy(cam.astype(np.float16)).flatten(1))
        start = end
    return halves.index_copy(
        0, sent(torch.tensor(rows, dtype=torch.int64), halves.device), sent(torch.cat(kept), halves.device)
    )


def _commit(made: _Made) -> None:
    """Commit each image of a batch to the outputs that lack it."""
    photos = [item.photo for item in made.batch]
    for item, cam, refined in zip(made.batch, by_photo(made.cams(), photos), by_photo(made.refined(), photos), strict=True):
        work, sample, size, shape = item.work, item.photo.sample, list(item.photo.size), (-1, *item.photo.grid)
        image_id = sample.image_id
        if work.superpixels is not None and item.superpixels is not None:
            attributes = photo_attributes(size, sample.photo, count=int(item.superpixels.max()) + 1)
            work.superpixels.writer.add(image_id, item.superpixels, attributes)
            work.superpixels.made(image_id)
        if work.cams is not None:
            work.cams.writer.add(image_id, cam.reshape(shape), photo_attributes(size, sample.photo, sample.labels))
            work.cams.made(image_id)
        if work.job is not None:
            work.job.refined(sample, refined.reshape(shape), size)
