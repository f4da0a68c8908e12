"""Initial CAMs of batches of photos on the frozen CLIP, through alignment heads where there are some."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.encoders.class_embeddings import TextEmbeddings
from pipelines.encoders.clip import ClipEncoder, ClipTokens
from pipelines.encoders.image import encoder_input, token_grid
from pipelines.errors import ImageError
from pipelines.method.aligned_cams import AlignedReadout
from pipelines.method.photo import Photo
from pipelines.ops.dense_readout import smooth_over_superpixels, text_probabilities
from pipelines.ops.gradcam import Logits, cosine_logits, softmax_entries, softmax_gradcam
from pipelines.ops.scaling import min_max
from pipelines.ops.superpixels import token_membership
from pipelines.options.stages import CamsOptions


class CamExtractor:
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
        aligned = heads.maps(tokens.tokens_cls, self.encoder.tail(tokens.grid), labels, memberships)  # (T, N)
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
        tail = self.encoder.tail(tokens.grid)
        present, targets = softmax_entries(labels, self.classes, len(self.text), tokens.tokens_cls.device)
        return softmax_gradcam(tokens.tokens_cls, tail.normalise, tail.features, tail.patches, self.logits, present, targets)

    @torch.inference_mode()
    def _dense(self, tokens: ClipTokens, labels: Sequence[tuple[int, ...]], memberships: Sequence[Tensor | None]) -> Tensor:
        tail = self.encoder.tail(tokens.grid)
        values = tail.value_tokens(tail.normalise(tail.patches(tokens.tokens_cls)))  # (B, N, D)
        background = self.text[self.classes :]  # (M, E)
        maps: list[Tensor] = []
        for value, own, membership in zip(values, labels, memberships, strict=True):
            if membership is not None:
                value = smooth_over_superpixels(value, membership.to(value.device), self.options.superpixel_share)  # (N, D)
            text = torch.cat([self.text[list(own)], background])  # (K + M, E)
            features = F.normalize(tail.project(value), dim=-1)  # (N, E)
            maps.append(text_probabilities(features, text, len(own), self.options.dense_scale))
        return torch.cat(maps)  # (T, N)


def uses_superpixels(options: CamsOptions) -> bool:
    """Whether the read-out needs the superpixel store."""
    plain = options.readout != "gradcam" and options.superpixel_share > 0
    return plain or (options.ckpt is not None and options.aligned_superpixel_share > 0)
