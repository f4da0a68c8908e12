"""`ssr refine`: spreads CAMs along CLIP + DINO attention, masked by superpixels, and makes pseudo-masks.

The encoders run once per image for any number of sets of options, so that a table of an ablation costs one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.datasets.base import Sample
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.execution.batches import batches_by, one_behind
from pipelines.execution.devices import resolve_batch_size, resolve_device
from pipelines.execution.fitting import fitting
from pipelines.execution.interruption import until_interrupted
from pipelines.execution.pool import usable
from pipelines.execution.progress import Progress, Silent
from pipelines.method.composition import refined_cams
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.evidence import CLIP_NEEDS, DINO_NEEDS, Needs
from pipelines.method.loading import FrozenModels
from pipelines.method.parts_in_use import refine_needs
from pipelines.method.photo import Photo, by_photo, too_large
from pipelines.ops.transfer import fetched, sent
from pipelines.options.stages import RefineOptions
from pipelines.stages.refine.target import STAGE, Target, TargetJob, open_target
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.image_arrays import read_cam
from pipelines.workdir.counts import Counts
from pipelines.workdir.output import Todo
from pipelines.workdir.photos import load_photo
from pipelines.workdir.settings import model_sources
from pipelines.workdir.workspace import Workspace, superpixel_reader

__all__ = ["STAGE", "Target", "outputs", "run", "run_targets"]


def outputs(workspace: Workspace, options: RefineOptions) -> tuple[Path, ...]:
    """Return the store and the folder that `run` writes."""
    return workspace.refined, workspace.masks


def run(workspace: Workspace, options: RefineOptions, progress: Progress | None = None) -> Counts:
    """Refine the CAMs of a work directory and make its pseudo-masks.

    Args:
        workspace: Names the images, CAMs, superpixels and the folder of the masks.
        options: Affinity, masks, background rule, boundary refinement.
        progress: Receives each mask.

    Returns:
        Masks done, skipped and failed.

    Raises:
        UsageError: The masks were made with other options, and ``workspace.force`` is off.
        SsrError: There are no CAMs, or no superpixels although a part needs them.
        TooManyFailures: There are more bad images than allowed; what was computed is kept.
    """
    return run_targets(workspace, [Target(options, workspace.work)], progress)[0]


def run_targets(workspace: Workspace, targets: Sequence[Target], progress: Progress | None = None) -> list[Counts]:
    """Do the same as `run` for several sets of options in one pass of the encoders.

    Args:
        workspace: Names the images, CAMs and superpixels.
        targets: Sets of options with equal ``clip_blocks`` and ``dino_blocks``, or 0, or a ``dino_weight`` of 0 or 1.
        progress: Receives each mask.

    Returns:
        Counts of each target.
    """
    progress = progress or Silent()
    device = resolve_device(workspace.run.device)
    needs, blocks = _shared_needs([target.options for target in targets])
    sources = model_sources(workspace, needs)
    with ExitStack() as stack:
        jobs = [stack.enter_context(open_target(workspace, target, sources, progress)) for target in targets]
        progress.start(STAGE, len(workspace.samples) * len(jobs))
        todo = Todo(_wanted(workspace.samples, jobs))
        if todo:  # otherwise no encoder is needed
            models = FrozenModels(sources, device, workspace.run.precision)
            encoders = models.encoders(needs, blocks)
            cams = stack.enter_context(ArrayReader(workspace.cams))
            superpixels = stack.enter_context(superpixel_reader(workspace, "superpixels" in needs))

            def load(wanted: tuple[Sample, list[TargetJob]]) -> tuple[Photo, list[TargetJob]]:
                sample, jobs = wanted
                _check_cam(cams, sample)
                photo = load_photo(encoders, superpixels, sample)
                if cams.attributes(sample.image_id).get("photo", photo.sample.photo) != photo.sample.photo:
                    raise ImageError("its image was replaced after its CAM was made", "run `ssr cams`")
                return photo, jobs

            photos = usable(load, todo, _leave_out)
            batches = batches_by(photos, lambda item: item[0].grid, resolve_batch_size(workspace.run, device))
            fit = fitting(partial(_refined, encoders, cams), batches, _too_large)
            for refined in one_behind(fit):
                _commit(refined)
        for job in jobs:
            job.makers.drain()
        progress.finish()
    return [job.output.counts for job in jobs]


def _wanted(samples: Iterable[Sample], jobs: Sequence[TargetJob]) -> Iterator[tuple[Sample, list[TargetJob]]]:
    """Yield the images that some target has not refined yet, with those targets."""
    for sample in until_interrupted(samples):
        wanting = [job for job in jobs if job.wants(sample)]
        if wanting:
            yield sample, wanting


def _shared_needs(options: Sequence[RefineOptions]) -> tuple[Needs, Blocks]:
    """Return the needs and blocks of one pass of the encoders that serves all sets of options."""
    needs = [refine_needs(one) for one in options]
    clip = {one.clip_blocks for one, of_one in zip(options, needs, strict=True) if of_one & CLIP_NEEDS}
    dino = {one.dino_blocks for one, of_one in zip(options, needs, strict=True) if of_one & DINO_NEEDS}
    if len(clip) > 1 or len(dino) > 1:
        raise UsageError(f"one pass has one clip_blocks and one dino_blocks, found {sorted(clip)} and {sorted(dino)}")
    blocks = Blocks(clip_attention=max(clip, default=0), dino_attention=max(dino, default=0))
    return needs[0].union(*needs), blocks


def _check_cam(cams: ArrayReader, sample: Sample) -> None:
    if sample.image_id not in cams:
        raise ImageError("it has no CAM", "run `ssr cams`")
    if cams.attributes(sample.image_id).get("labels") != list(sample.labels):
        raise ImageError("its labels changed after its CAM was made", "run `ssr cams`")


def _leave_out(wanted: tuple[Sample, list[TargetJob]], error: ImageError) -> None:
    sample, jobs = wanted
    for job in jobs:
        job.output.made(sample.image_id, error)


def _too_large(item: tuple[Photo, list[TargetJob]]) -> None:
    _leave_out((item[0].sample, item[1]), too_large(item[0]))


@dataclass(frozen=True)
class _Refined:
    """A batch: the targets and size of each image, and the maps ``(T, N)`` fp16 of each target."""

    batch: Sequence[tuple[Photo, list[TargetJob]]]
    sizes: list[list[int]]
    maps: list[tuple[TargetJob, Callable[[], NDArray[np.float16]]]]


def _refined(encoders: Encoders, cams: ArrayReader, batch: Sequence[tuple[Photo, list[TargetJob]]]) -> _Refined:
    """Refine the CAMs of images of one grid for every target that lacks them."""
    photos = [photo for photo, _ in batch]
    stored = [read_cam(cams, photo.sample.image_id) for photo in photos]
    for photo, (cam, _) in zip(photos, stored, strict=True):
        if tuple(cam.shape[1:]) != photo.grid:
            found = f"CAM of {photo.sample.image_id} is on grid {tuple(cam.shape[1:])}, the image on {photo.grid}"
            raise SsrError(found, "ssr cams --force")
    evidence = encoders.encode(photos)
    flat = torch.cat([torch.from_numpy(cam.astype(np.float32)).flatten(1) for cam, _ in stored])
    maps = sent(flat, encoders.clip.device)  # (T, N)
    jobs = {id(job): job for _, jobs in batch for job in jobs}.values()
    made = [(job, fetched(refined_cams(evidence, maps, job.target.options).half())) for job in jobs]
    return _Refined(batch, [attributes["size"] for _, attributes in stored], made)


def _commit(refined: _Refined) -> None:
    """Store the maps of a batch, and queue its masks."""
    photos = [photo for photo, _ in refined.batch]
    for job, maps in refined.maps:
        for (photo, jobs), of_photo, size in zip(refined.batch, by_photo(maps(), photos), refined.sizes, strict=True):
            if job in jobs:
                job.refined(photo.sample, of_photo.reshape(-1, *photo.grid), size)
