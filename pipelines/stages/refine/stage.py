"""`ssr refine`: spread CAMs along CLIP + DINO attention, masked by superpixels, and make pseudo-masks.

The encoders run once an image, however many sets of options are asked for: a table of an ablation costs one pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.weights import build_clip, fetch_clip, fetch_dino, resolve_clip, resolve_dino
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size, resolve_device, resolve_dtype
from pipelines.execution.interruption import until_interrupted
from pipelines.execution.pool import usable
from pipelines.execution.progress import Progress, Silent
from pipelines.method.encoder_pair import EncoderPair, Photo
from pipelines.method.refinement import check_encoders, refined_maps, uses_clip, uses_dino, uses_superpixels
from pipelines.options.stages import RefineOptions
from pipelines.stages.refine.target import STAGE, Target, TargetJob, open_target
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.image_arrays import read_cam, superpixels_of
from pipelines.workdir.counts import Counts
from pipelines.workdir.output import Todo
from pipelines.workdir.workspace import Workspace

__all__ = ["Target", "run", "run_targets"]


def run(workspace: Workspace, options: RefineOptions, progress: Progress | None = None) -> Counts:
    """Refine the CAMs of a work directory and make its pseudo-masks.

    Args:
        workspace: Where images, CAMs and superpixels come from and masks go.
        options: Affinity, masks, background rule, CRF.
        progress: Told about each mask.

    Returns:
        Masks done, skipped and failed.

    Raises:
        UsageError: Made with other options before, and ``workspace.force`` is off.
        SsrError: No CAMs, or no superpixels although they are asked for.
        TooManyFailures: More bad images than allowed; what was computed is kept.
    """
    return run_targets(workspace, [Target(options, workspace.work)], progress)[0]


def run_targets(workspace: Workspace, targets: Sequence[Target], progress: Progress | None = None) -> list[Counts]:
    """Like `run` for several sets of options in one pass of the encoders.

    Args:
        workspace: Where images, CAMs and superpixels come from.
        targets: Sets of options with equal ``clip_blocks`` and ``dino_blocks``, or 0, or a ``dino_weight`` of 0 or 1.
        progress: Told about each mask.

    Returns:
        Counts of each target.
    """
    progress = progress or Silent()
    device = resolve_device(workspace.run.device)
    clip_weights = resolve_clip(workspace.clip.model, workspace.clip.pretrained)
    needs_dino = any(uses_dino(target.options) for target in targets)
    dino_weights = resolve_dino(workspace.dino.model, workspace.dino.pretrained) if needs_dino else None
    shared = _shared_encoder_options(targets)

    def fetch() -> None:  # before --force clears what is there
        fetch_clip(clip_weights)
        if dino_weights is not None:
            fetch_dino(dino_weights)

    with ExitStack() as stack:
        jobs = [
            stack.enter_context(open_target(workspace, target, clip_weights, dino_weights, progress, fetch))
            for target in targets
        ]
        progress.start(STAGE, len(workspace.samples) * len(jobs))
        todo = Todo(_wanted(workspace.samples, jobs))
        if todo:  # else no encoder is needed
            dtype = resolve_dtype(workspace.run.precision, device)
            clip = ClipEncoder(build_clip(clip_weights), device, dtype)
            pair = EncoderPair(clip, DinoEncoder(dino_weights, device, dtype) if dino_weights else None, shared)
            inputs = stack.enter_context(_Inputs(workspace, targets))
            for batch in batches_by(
                usable(partial(_load, pair, inputs), todo, _leave_out),
                lambda item: item[0].grid,
                resolve_batch_size(workspace.run, device),
            ):
                encoded = pair.encode([photo for photo, _ in batch])
                for index, (photo, wanting) in enumerate(batch):
                    _refine_one(photo, inputs, wanting, encoded.attention_of(index), encoded.dino_tokens_of(index))
        for job in jobs:
            job.makers.drain()
        progress.finish()
    return [job.output.counts for job in jobs]


def _wanted(samples: Iterable[Sample], jobs: Sequence[TargetJob]) -> Iterator[tuple[Sample, list[TargetJob]]]:
    """Images that some target has not refined yet, and which targets those are."""
    for sample in until_interrupted(samples):
        wanting = [job for job in jobs if job.wants(sample)]
        if wanting:
            yield sample, wanting


def _shared_encoder_options(targets: Sequence[Target]) -> RefineOptions:
    """One set of options whose encoder passes serve all targets."""
    clip = {t.options.clip_blocks for t in targets if uses_clip(t.options)}
    dino = {t.options.dino_blocks for t in targets if uses_dino(t.options)}
    if len(clip) > 1 or len(dino) > 1:
        raise UsageError(f"one pass has one clip_blocks and one dino_blocks, found {sorted(clip)} and {sorted(dino)}")
    for target in targets:
        check_encoders(target.options)
    return RefineOptions(clip_blocks=max(clip, default=0), dino_blocks=max(dino, default=0))


class _Inputs:
    """CAMs and superpixels of the work directory, opened once."""

    def __init__(self, workspace: Workspace, targets: Sequence[Target]) -> None:
        self.cams = ArrayReader(workspace.cams)
        self.superpixels = ArrayReader(workspace.superpixels) if any(uses_superpixels(t.options) for t in targets) else None
        self.wants_features = any(target.options.superpixel_mask == "cluster" for target in targets)
        self.wants_colours = any(target.options.superpixel_mask == "colour" for target in targets)

    def cam(self, sample: Sample) -> Tensor:
        """``(K, h, w)`` fp32."""
        return torch.from_numpy(read_cam(self.cams, sample.image_id)[0].astype(np.float32))

    def missing(self, sample: Sample) -> ImageError | None:
        """Why an image cannot be refined, or None."""
        if sample.image_id not in self.cams:
            return ImageError("it has no CAM", "run `ssr cams`")
        if self.cams.attributes(sample.image_id).get("labels") != list(sample.labels):
            return ImageError("its labels changed after its CAM was made", "run `ssr cams`")
        return None

    def __enter__(self) -> _Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.cams.close()
        if self.superpixels is not None:
            self.superpixels.close()


def _load(pair: EncoderPair, inputs: _Inputs, wanted: tuple[Sample, list[TargetJob]]) -> tuple[Photo, list[TargetJob]]:
    sample, jobs = wanted
    error = inputs.missing(sample)
    if error is not None:
        raise error
    return pair.load(sample, superpixels_of(inputs.superpixels, sample.image_id), inputs.wants_colours), jobs


def _leave_out(wanted: tuple[Sample, list[TargetJob]], error: ImageError) -> None:
    sample, jobs = wanted
    for job in jobs:
        job.output.made(sample.image_id, error)


def _refine_one(
    photo: Photo,
    inputs: _Inputs,
    jobs: list[TargetJob],
    attention: tuple[Tensor | None, Tensor | None],
    dino_tokens: Tensor | None,
) -> None:
    cam = inputs.cam(photo.sample)  # (K, h, w)
    if tuple(cam.shape[1:]) != photo.grid:
        found = f"CAM of {photo.sample.image_id} is on grid {tuple(cam.shape[1:])}, the photo on {photo.grid}"
        raise SsrError(found, "ssr cams --force")
    device = next(a.device for a in attention if a is not None)
    flat = cam.flatten(1).to(device)  # (K, N)
    superpixels = photo.superpixels
    if superpixels is not None and dino_tokens is not None and inputs.wants_features:
        superpixels = superpixels.with_features(dino_tokens)
    for job in jobs:
        refined = refined_maps(flat, photo.grid, attention, superpixels, job.target.options).view_as(cam)  # (K, h, w)
        size = inputs.cams.attributes(photo.sample.image_id)["size"]
        job.refined(photo.sample, refined.cpu().numpy().astype(np.float16), size)
