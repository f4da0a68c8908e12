"""`ssr cams`: softmax-GradCAM of every photo's own classes on the frozen CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.encoders.class_embeddings import text_embeddings
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.errors import ImageError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size, resolve_device, resolve_dtype
from pipelines.execution.pool import prefetch
from pipelines.execution.progress import Progress, Silent
from pipelines.method.aligned_cams import AlignedReadout
from pipelines.method.cam_extractor import CamExtractor, uses_superpixels
from pipelines.method.photo import Photo, shapes
from pipelines.models.alignment_file import read_alignment
from pipelines.options.stages import CamsOptions
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.image_arrays import read_superpixels
from pipelines.workdir.counts import Counts
from pipelines.workdir.image_run import Run
from pipelines.workdir.settings import cam_settings
from pipelines.workdir.workspace import Workspace, has_labels

STAGE = "cams"


def run(workspace: Workspace, options: CamsOptions, progress: Progress | None = None) -> Counts:
    """Compute the CAMs of every image that has none yet.

    Args:
        workspace: Where images come from and the store goes.
        options: Scales, flip, alignment heads.
        progress: Told about each image.

    Returns:
        Images done, skipped and failed.

    Raises:
        UsageError: The store was made with other options and ``workspace.force`` is off.
        TooManyFailures: More bad images than allowed; what was computed is kept.
    """
    progress = progress or Silent()
    device = resolve_device(workspace.run.device)
    weights = resolve_clip(workspace.clip.model, workspace.clip.pretrained)
    clip = build_clip(weights)
    text = text_embeddings(clip, workspace.dataset.classes, workspace.clip)
    heads = None
    options = options.model_copy(update={"ckpt": workspace.heads(options.ckpt)})
    if options.ckpt is not None:
        heads = AlignedReadout(read_alignment(options.ckpt, weights, workspace.dataset.classes, text), text, options, device)
    maker = CamExtractor(ClipEncoder(clip, device, resolve_dtype(workspace.run.precision, device)), text, options, heads=heads)
    with ExitStack() as stack:
        writer = stack.enter_context(workspace.writer(workspace.cams))
        settings = cam_settings(workspace, options, weights, text)
        manifest = workspace.settle(workspace.cams, STAGE, settings, writer.clear)
        committed = workspace.committed(workspace.cams, stack)
        run = Run(workspace, STAGE, progress)
        superpixels = stack.enter_context(ArrayReader(workspace.superpixels)) if uses_superpixels(options) else None
        progress.start(STAGE, len(workspace.samples))

        def add(photo: Photo, cam: Tensor) -> None:
            attributes = {"labels": list(photo.sample.labels), "size": list(photo.size)}
            writer.add(photo.sample.image_id, cam.cpu().numpy().astype(np.float16), attributes)
            run.made(photo.sample.image_id)

        def load(sample: Sample) -> Photo:
            if superpixels is None:
                return maker.load(sample)
            if sample.image_id not in superpixels:
                raise ImageError("it has no superpixels", "run `ssr superpixels`")
            return maker.load(sample, read_superpixels(superpixels, sample.image_id))

        def decoded() -> Iterator[Photo]:
            for sample, photo in prefetch(load, run.unfinished(lambda sample: has_labels(committed, sample))):
                if isinstance(photo, ImageError):
                    run.made(sample.image_id, photo)
                elif not sample.labels:  # nothing to look for: an empty CAM, no pass of the encoder
                    add(photo, torch.zeros(0, *photo.grid))
                else:
                    yield photo

        for photos in batches_by(decoded(), shapes, resolve_batch_size(workspace.run, device)):
            for photo, cam in zip(photos, maker.cams(photos), strict=True):
                add(photo, cam)
        progress.finish()
    workspace.finish(workspace.cams, manifest, run.counts)
    return run.counts
