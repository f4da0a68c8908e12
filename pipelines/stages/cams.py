"""`ssr cams`: softmax-GradCAM of every photo's own classes on the frozen CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.image import encoder_input, token_grid
from pipelines.encoders.weights import Weights, build_clip, resolve_clip
from pipelines.errors import ImageError, UsageError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size, resolve_device, resolve_dtype
from pipelines.execution.pool import prefetch
from pipelines.execution.progress import Progress, Silent
from pipelines.ops.gradcam import Logits, cosine_logits, min_max, softmax_gradcam
from pipelines.options.stages import CamsOptions
from pipelines.stages.counts import Counts
from pipelines.stages.embeddings import TextEmbeddings, text_embeddings
from pipelines.stages.workspace import Workspace
from pipelines.stores.array_store import ArrayReader, ArrayWriter, store_exists

STAGE = "cams"

Grid = tuple[int, int]


@dataclass(frozen=True)
class Photo:
    """A decoded photo, resized for the encoder.

    Attributes:
        sample: Which photo.
        size: ``(H, W)`` of the file.
        grid: Token grid at scale 1.
        inputs: Encoder inputs ``(3, H', W')``, one a scale.
    """

    sample: Sample
    size: tuple[int, int]
    grid: Grid
    inputs: tuple[Tensor, ...]


class CamMaker:
    """Makes initial CAMs of batches of photos; holds no files.

    Args:
        encoder: The frozen CLIP.
        text: Class and background embeddings.
        options: Scales and flip.
        logits: From pooled image features to logits over [classes ; background words]; CLIP's own cosine by default.
            Alignment heads put theirs here.
    """

    def __init__(self, encoder: ClipEncoder, text: TextEmbeddings, options: CamsOptions, logits: Logits | None = None) -> None:
        self.encoder = encoder
        self.options = options
        self.classes = len(text.classes)
        self.words = len(text.classes) + len(text.background)
        self.logits = logits or cosine_logits(text.all.to(encoder.device), encoder.logit_scale)

    def load(self, sample: Sample) -> Photo:
        """Decode a photo and resize it to every scale.

        Raises:
            ImageError: The file cannot be used.
        """
        return self.prepare(load_image(sample.image_path), sample)

    def prepare(self, image: Image.Image, sample: Sample) -> Photo:
        """Resize a decoded RGB photo to every scale."""
        size, patch = (image.height, image.width), self.encoder.patch_size
        grids = [token_grid(*size, patch, scale) for scale in self.options.scales]
        inputs = tuple(encoder_input(image, grid, patch, self.encoder.mean, self.encoder.std) for grid in grids)
        return Photo(sample, size, token_grid(*size, patch), inputs)

    def cams(self, photos: list[Photo]) -> list[Tensor]:
        """Initial CAMs of photos of one padded size.

        Args:
            photos: A batch; all have the same grid.

        Returns:
            For each photo ``(K, h, w)`` fp32 in [0, 1], K = its classes, in the order of ``sample.labels``. With several
            scales or the mirror image, maps are averaged on the grid of scale 1 and scaled to [0, 1] again.
        """
        device = self.encoder.device
        targets = torch.zeros(len(photos), self.words, dtype=torch.bool)  # (B, C + M)
        for row, photo in zip(targets, photos, strict=True):
            row[list(photo.sample.labels)] = True
        counts = targets.sum(dim=1).tolist()
        present = targets.clone()
        present[:, self.classes :] = True
        targets, present = targets.to(device), present.to(device)
        total: Tensor | None = None
        for scale in range(len(self.options.scales)):
            images = torch.stack([photo.inputs[scale] for photo in photos]).to(device)  # (B, 3, H', W')
            for mirrored in (False, True) if self.options.flip else (False,):
                maps = self._maps(images.flip(-1) if mirrored else images, present, targets)  # (T, h', w')
                maps = maps.flip(-1) if mirrored else maps
                if maps.shape[1:] != photos[0].grid:
                    maps = F.interpolate(maps[None], size=photos[0].grid, mode="bilinear")[0]  # (T, h, w)
                total = maps if total is None else total + maps
        assert total is not None  # noqa: S101 - options guarantee a scale
        if len(self.options.scales) > 1 or self.options.flip:
            total = min_max(total.flatten(1)).view_as(total)
        return list(total.split(counts))

    def _maps(self, images: Tensor, present: Tensor, targets: Tensor) -> Tensor:
        tokens = self.encoder.encode(images)
        raw = softmax_gradcam(tokens.tokens_cls, self.encoder.last_block, self.logits, present, targets)  # (T, N)
        return min_max(raw).view(-1, *tokens.grid) if len(raw) else raw.new_zeros(0, *tokens.grid)


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
    if options.ckpt is not None:
        raise UsageError(f"cannot use {options.ckpt}: alignment heads are not part of this version", "leave out --ckpt")
    dataset, device = workspace.dataset, resolve_device(workspace.run.device)
    weights = resolve_clip(workspace.clip.model, workspace.clip.pretrained)
    clip = build_clip(weights)
    text = text_embeddings(clip, dataset.classes, workspace.clip)
    maker = CamMaker(ClipEncoder(clip, device, resolve_dtype(workspace.run.precision, device)), text, options)
    with ArrayWriter(workspace.cams) as writer:
        settings = cam_settings(workspace, options, weights, text)
        manifest = workspace.settle(workspace.cams, STAGE, settings, writer.clear)
        todo = _todo(workspace)
        counts = Counts(skipped=len(dataset.samples) - len(todo))
        failures = workspace.failures(STAGE, progress)
        progress.start("cams", len(dataset.samples), counts.skipped)

        def add(photo: Photo, cam: Tensor) -> None:
            attributes = {"labels": list(photo.sample.labels), "size": list(photo.size)}
            writer.add(photo.sample.image_id, cam.cpu().numpy().astype(np.float16), attributes)
            counts.done += 1
            progress.advance()

        def decoded() -> Iterator[Photo]:
            for sample, photo in prefetch(maker.load, todo):
                if isinstance(photo, ImageError):
                    counts.failed += 1
                    failures.add(sample.image_id, photo)
                    progress.advance()
                elif not sample.labels:  # nothing to look for: an empty CAM, no pass of the encoder
                    add(photo, torch.zeros(0, *photo.grid))
                else:
                    yield photo

        for photos in batches_by(decoded(), lambda photo: photo.grid, resolve_batch_size(workspace.run, device)):
            for photo, cam in zip(photos, maker.cams(photos), strict=True):
                add(photo, cam)
        progress.finish()
    manifest.counts, manifest.complete = counts.as_dict(), True
    manifest.write(workspace.cams.with_suffix(".json"))
    return counts


def cam_settings(workspace: Workspace, options: CamsOptions, weights: Weights, text: TextEmbeddings) -> dict[str, Any]:
    """Whatever changes a CAM."""
    return {
        **options.model_dump(mode="json"),
        "clip": weights.provenance(),
        "text": text.provenance(),
        "classes": list(workspace.dataset.classes.names),
    }


def _todo(workspace: Workspace) -> list[Sample]:
    """Images without a CAM, or whose labels have changed since."""
    if not store_exists(workspace.cams):
        return list(workspace.dataset.samples)
    with ArrayReader(workspace.cams) as reader:
        return [
            sample
            for sample in workspace.dataset.samples
            if sample.image_id not in reader or reader.attributes(sample.image_id).get("labels") != list(sample.labels)
        ]
