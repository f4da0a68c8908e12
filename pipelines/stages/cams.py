"""`ssr cams`: softmax-GradCAM of every image's own classes on the frozen CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.execution.batches import batches_by, one_behind
from pipelines.execution.devices import resolve_batch_size, resolve_device
from pipelines.execution.fitting import fitting
from pipelines.execution.progress import Progress, Silent
from pipelines.method.cam_extractor import extract_cams
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.loading import FrozenModels
from pipelines.method.parts_in_use import cam_needs
from pipelines.method.photo import Photo, by_photo, shapes, too_large
from pipelines.ops.transfer import fetched
from pipelines.options.stages import CamsOptions
from pipelines.stores.image_arrays import photo_attributes
from pipelines.workdir.counts import Counts
from pipelines.workdir.output import Output
from pipelines.workdir.photos import load_photo
from pipelines.workdir.settings import cam_settings, model_sources
from pipelines.workdir.workspace import Workspace, superpixel_reader

STAGE = "cams"


def outputs(workspace: Workspace, options: CamsOptions) -> tuple[Path, ...]:
    """Return the stores that `run` writes."""
    return (workspace.cams,)


def run(workspace: Workspace, options: CamsOptions, progress: Progress | None = None) -> Counts:
    """Compute the CAMs of every image that has none.

    Args:
        workspace: Names the images and the store.
        options: Read-out, scales, flip, alignment heads.
        progress: Receives each image.

    Returns:
        Images done, skipped and failed.

    Raises:
        UsageError: The store was made with other options and ``workspace.force`` is off.
        TooManyFailures: There are more bad images than allowed; what was computed is kept.
    """
    progress = progress or Silent()
    device = resolve_device(workspace.run.device)
    options = options.model_copy(update={"ckpt": workspace.heads(options.ckpt)})
    needs = cam_needs(options)
    sources = model_sources(workspace, needs, options.ckpt)
    settings = cam_settings(workspace, options, sources)

    @cache
    def encoders() -> Encoders:
        models = FrozenModels(sources, device, workspace.run.precision)
        return models.encoders(needs, Blocks(), options)

    with (
        workspace.output(STAGE, workspace.cams, settings, progress, prepare=encoders) as output,
        superpixel_reader(workspace, "superpixels" in needs) as superpixels,
    ):
        todo = output.todo(output.holds_labels)
        if todo:
            load = partial(load_photo, encoders(), superpixels, scales=options.scales)
            photos = _with_classes(output.photos(load, todo), output)
            batches = batches_by(photos, shapes, resolve_batch_size(workspace.run, device))

            def make(batch: Sequence[Photo]) -> tuple[Sequence[Photo], Callable[[], NDArray[np.float16]]]:
                return batch, fetched(extract_cams(encoders(), batch, options).half())

            made = fitting(make, batches, lambda photo: output.made(photo.sample.image_id, too_large(photo)))
            for batch, maps in one_behind(made):
                for photo, cam in zip(batch, by_photo(maps(), batch), strict=True):
                    _commit(output, photo, cam)
    return output.counts


def _with_classes(photos: Iterable[Photo], output: Output) -> Iterator[Photo]:
    """Yield the images that have a class; the others get an empty CAM, without a pass of the encoder."""
    for photo in photos:
        if photo.sample.labels:
            yield photo
        else:
            _commit(output, photo, np.zeros((0, *photo.grid), dtype=np.float16))


def _commit(output: Output, photo: Photo, cam: NDArray[np.float16]) -> None:
    """Store the CAM of an image, ``(K, h, w)``."""
    attributes = photo_attributes(photo.size, photo.sample.photo, photo.sample.labels)
    output.writer.add(photo.sample.image_id, cam, attributes)
    output.made(photo.sample.image_id)
