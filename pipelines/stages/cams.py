"""`ssr cams`: softmax-GradCAM of every photo's own classes on the frozen CLIP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.encoders.class_embeddings import TextSources, text_sources
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size, resolve_device, resolve_dtype
from pipelines.execution.progress import Progress, Silent
from pipelines.method.aligned_cams import AlignedReadout
from pipelines.method.cam_extractor import CamExtractor, uses_superpixels
from pipelines.method.photo import Photo, shapes
from pipelines.models.alignment_file import read_alignment
from pipelines.options.stages import CamsOptions
from pipelines.stores.image_arrays import superpixels_of
from pipelines.workdir.counts import Counts
from pipelines.workdir.output import Output
from pipelines.workdir.settings import cam_settings
from pipelines.workdir.workspace import Workspace, superpixel_reader

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
    options = options.model_copy(update={"ckpt": workspace.heads(options.ckpt)})
    weights = resolve_clip(workspace.clip.model, workspace.clip.pretrained)
    text = text_sources(weights, workspace.dataset.classes, workspace.clip)
    settings = cam_settings(workspace, options, weights, text)
    extractor_once = cache(partial(_extractor, workspace, options, text, device))
    with (
        workspace.output(STAGE, workspace.cams, settings, progress, prepare=extractor_once) as output,
        superpixel_reader(workspace, uses_superpixels(options)) as superpixels,
    ):
        todo = output.todo(output.holds_labels)
        if todo:
            extractor = extractor_once()

            def load(sample: Sample) -> Photo:
                return extractor.load(sample, superpixels_of(superpixels, sample.image_id))

            photos = output.photos(load, todo)
            for batch in batches_by(_with_classes(photos, output), shapes, resolve_batch_size(workspace.run, device)):
                for photo, cam in zip(batch, extractor.cams(batch), strict=True):
                    _commit(output, photo, cam)
    return output.counts


def _extractor(workspace: Workspace, options: CamsOptions, text: TextSources, device: torch.device) -> CamExtractor:
    """Load CLIP, the class embeddings and the alignment heads if CAMs go through them."""
    clip = build_clip(text.clip)
    embeddings = text.embeddings(clip)
    heads = None
    if options.ckpt is not None:
        alignment = read_alignment(options.ckpt, text.clip, text.classes, embeddings)
        heads = AlignedReadout(alignment, embeddings, options, device)
    encoder = ClipEncoder(clip, device, resolve_dtype(workspace.run.precision, device))
    return CamExtractor(encoder, embeddings, options, heads=heads)


def _with_classes(photos: Iterable[Photo], output: Output) -> Iterator[Photo]:
    """The photos that have a class; of the others an empty CAM is committed, without a pass of the encoder."""
    for photo in photos:
        if photo.sample.labels:
            yield photo
        else:
            _commit(output, photo, torch.zeros(0, *photo.grid))


def _commit(output: Output, photo: Photo, cam: Tensor) -> None:
    """Store the CAM of a photo, ``(K, h, w)``."""
    attributes = {"labels": list(photo.sample.labels), "size": list(photo.size)}
    output.writer.add(photo.sample.image_id, cam.cpu().numpy().astype(np.float16), attributes)
    output.made(photo.sample.image_id)
