"""`ssr cams`: softmax-GradCAM of every photo's own classes on the frozen CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder, ClipTokens
from pipelines.encoders.image import encoder_input, token_grid
from pipelines.encoders.weights import Weights, build_clip, file_sha256, resolve_clip
from pipelines.errors import ImageError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import precision_name, resolve_batch_size, resolve_device, resolve_dtype
from pipelines.execution.pool import prefetch
from pipelines.execution.progress import Progress, Silent
from pipelines.ops.dense_readout import dense_probabilities, smooth_over_superpixels, value_tokens
from pipelines.ops.gradcam import Logits, cosine_logits, min_max, softmax_entries, softmax_gradcam
from pipelines.ops.superpixels import token_membership
from pipelines.options.stages import CamsOptions
from pipelines.stages.aligned_readout import AlignedReadout, read_alignment
from pipelines.stages.counts import Counts
from pipelines.stages.embeddings import TextEmbeddings, text_embeddings
from pipelines.stages.run import Run
from pipelines.stages.stored import read_superpixels
from pipelines.stages.workspace import Workspace, has_labels, input_digest
from pipelines.stores.array_store import ArrayReader

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
        memberships: Superpixels on each scale's grid, ``(S, N')``; empty if no option asks for them.
    """

    sample: Sample
    size: tuple[int, int]
    grid: Grid
    inputs: tuple[Tensor, ...]
    memberships: tuple[Tensor, ...] = ()


class CamMaker:
    """Makes initial CAMs of batches of photos; holds no files.

    Args:
        encoder: The frozen CLIP.
        text: Class and background embeddings.
        options: Read-out, scales and flip.
        logits: From pooled image features to logits over [classes ; background words]; CLIP's own cosine by default.
        heads: Alignment heads, if CAMs go through them.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        text: TextEmbeddings,
        options: CamsOptions,
        logits: Logits | None = None,
        heads: AlignedReadout | None = None,
    ) -> None:
        self.encoder = encoder
        self.options = options
        self.classes = len(text.classes)
        self.text = text.all.to(encoder.device)  # (C + M, E)
        self.logits = logits or cosine_logits(self.text, encoder.logit_scale)
        self.heads = heads

    def load(self, sample: Sample, superpixels: NDArray[np.integer] | None = None) -> Photo:
        """Decode a photo and resize it to every scale.

        Args:
            sample: The photo.
            superpixels: Its superpixels ``(H, W)``, if ``superpixel_share`` asks for them.

        Raises:
            ImageError: The file cannot be used, or its superpixels are of another size.
        """
        image = load_image(sample.image_path)
        size, patch = (image.height, image.width), self.encoder.patch_size
        if superpixels is not None and superpixels.shape != size:
            raise ImageError(f"its superpixels are {superpixels.shape}, the photo {size}", "ssr superpixels --force")
        grids = [token_grid(*size, patch, scale) for scale in self.options.scales]
        return Photo(
            sample,
            size,
            token_grid(*size, patch),
            tuple(encoder_input(image, grid, patch, self.encoder.mean, self.encoder.std) for grid in grids),
            () if superpixels is None else tuple(token_membership(superpixels, grid) for grid in grids),
        )

    def cams(self, photos: Sequence[Photo]) -> list[Tensor]:
        """Initial CAMs of photos of one padded size.

        Args:
            photos: A batch; all have the same grid at every scale.

        Returns:
            For each photo ``(K, h, w)`` fp32 in [0, 1], K = its classes, in the order of ``sample.labels``. With several
            scales or the mirror image, maps are averaged on the grid of scale 1 and scaled to [0, 1] again.
        """
        grid = photos[0].grid
        passes = [
            (scale, mirrored)
            for scale in range(len(self.options.scales))
            for mirrored in (False, True)[: 1 + self.options.flip]
        ]
        total: Tensor | None = None
        for scale, mirrored in passes:
            maps = self._maps(photos, scale, mirrored)  # (T, h', w')
            if maps.shape[1:] != grid:
                maps = F.interpolate(maps[None], size=grid, mode="bilinear")[0]  # (T, h, w)
            total = maps if total is None else total + maps
        assert total is not None  # noqa: S101 - options guarantee a scale
        if len(passes) > 1:
            total = min_max(total.flatten(1)).view_as(total)
        return list(torch.split(total, [len(photo.sample.labels) for photo in photos]))

    def _maps(self, photos: Sequence[Photo], scale: int, mirrored: bool) -> Tensor:
        """Maps of all (image, class) pairs at one scale, ``(T, h', w')``, each in [0, 1]."""
        images = torch.stack([photo.inputs[scale] for photo in photos])  # (B, 3, H', W')
        tokens = self.encoder.encode(images.flip(-1) if mirrored else images)
        memberships: list[Tensor | None] = [None] * len(photos)
        for index, photo in enumerate(photos):
            if photo.memberships:
                membership = photo.memberships[scale]  # (S, N)
                memberships[index] = membership.view(-1, *tokens.grid).flip(-1).flatten(1) if mirrored else membership
        maps = self.read_out(tokens, [photo.sample.labels for photo in photos], memberships).view(-1, *tokens.grid)
        return maps.flip(-1) if mirrored else maps

    def read_out(self, tokens: ClipTokens, labels: Sequence[tuple[int, ...]], memberships: Sequence[Tensor | None]) -> Tensor:
        """Maps of all (image, class) pairs from tokens.

        Args:
            tokens: Of a batch.
            labels: Class indices of each image.
            memberships: Superpixels of each image on the token grid ``(S, N)``; None where no option asks for them.

        Returns:
            ``(T, N)``, each in [0, 1]: image by image, classes in the order of ``labels``.
        """
        heads = self.heads
        if heads is None:
            return self._plain(tokens, labels, memberships)
        aligned = heads.maps(tokens.tokens_cls, self.encoder.last_block, labels, memberships)  # (T, N)
        if heads.trusted(labels):
            return aligned
        return heads.blend(aligned, self._plain(tokens, labels, memberships), labels)

    def _plain(self, tokens: ClipTokens, labels: Sequence[tuple[int, ...]], memberships: Sequence[Tensor | None]) -> Tensor:
        options = self.options
        if options.readout == "gradcam":
            return min_max(self.gradcam(tokens, labels))  # (T, N)
        maps = min_max(self._dense(tokens, labels, memberships))  # (T, N)
        if options.readout == "mix":
            gradcam = min_max(self.gradcam(tokens, labels))  # (T, N)
            maps = min_max(options.dense_weight * maps + (1 - options.dense_weight) * gradcam)
        return maps

    def gradcam(self, tokens: ClipTokens, labels: Sequence[tuple[int, ...]]) -> Tensor:
        """GradCAM of all (image, class) pairs, ``(T, N)``, not yet scaled; see `read_out`."""
        present, targets = softmax_entries(labels, self.classes, len(self.text), tokens.tokens_cls.device)
        return softmax_gradcam(tokens.tokens_cls, self.encoder.last_block, self.logits, present, targets)

    def _dense(self, tokens: ClipTokens, labels: Sequence[tuple[int, ...]], memberships: Sequence[Tensor | None]) -> Tensor:
        values = value_tokens(tokens.tokens_cls, self.encoder.last_block)  # (B, N, D)
        background = self.text[self.classes :]  # (M, E)
        maps: list[Tensor] = []
        for value, own, membership in zip(values, labels, memberships, strict=True):
            if membership is not None:
                value = smooth_over_superpixels(value, membership.to(value.device), self.options.superpixel_share)  # (N, D)
            text = torch.cat([self.text[list(own)], background])  # (K + M, E)
            maps.append(dense_probabilities(value, self.encoder.last_block, text, len(own), self.options.dense_scale))
        return torch.cat(maps)  # (T, N)


def shapes(photo: Photo) -> tuple[tuple[int, ...], ...]:
    """What photos of one batch share: equal grids at scale 1 may differ at another scale."""
    return photo.grid, *(tuple(pixels.shape) for pixels in photo.inputs)


def uses_superpixels(options: CamsOptions) -> bool:
    """Whether the read-out needs the superpixel store."""
    plain = options.readout != "gradcam" and options.superpixel_share > 0
    return plain or (options.ckpt is not None and options.aligned_superpixel_share > 0)


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
    maker = CamMaker(ClipEncoder(clip, device, resolve_dtype(workspace.run.precision, device)), text, options, heads=heads)
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


def cam_settings(workspace: Workspace, options: CamsOptions, weights: Weights, text: TextEmbeddings) -> dict[str, Any]:
    """Whatever changes a CAM.

    Raises:
        SsrError: The options need superpixels and there are none.
    """
    unused = {"dense_weight", "dense_scale", "superpixel_share"} if options.readout == "gradcam" else set()
    of_heads = {name for name in CamsOptions.model_fields if name.startswith("aligned_")} | {
        "few_photos",
        "min_average_precision",
    }
    heads = None
    if options.ckpt is not None:
        heads = {"sha256": file_sha256(options.ckpt), **options.model_dump(mode="json", include=of_heads)}
    settings = {
        **options.model_dump(mode="json", exclude=unused | of_heads),
        "ckpt": heads,
        "clip": weights.provenance(),
        "text": text.provenance(),
        "precision": precision_name(workspace.run),
        "classes": list(workspace.dataset.classes.names),
    }
    if uses_superpixels(options):
        settings["superpixels"] = input_digest(workspace.superpixels, "ssr superpixels")
    return settings
