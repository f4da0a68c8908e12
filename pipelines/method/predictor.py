"""The predictor, which computes a segmentation model's logits of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.image import encoder_input, token_grid
from pipelines.errors import UsageError
from pipelines.method.photo import Photo, View, averaged_over_views
from pipelines.models.segmenter import Segmenter
from pipelines.options.train import PredictOptions


class MakesLogits(Protocol):
    """An object that turns images into logits, such as `Predictor`."""

    def photo(self, sample: Sample, image: Image.Image) -> Photo:
        """Resize a decoded image."""

    def logits(self, photos: Sequence[Photo]) -> Tensor:
        """Compute the logits ``(B, C + 1, h, w)`` of a batch."""


def mean_logits(forward: Callable[[Tensor], Tensor], photos: Sequence[Photo], options: PredictOptions) -> Tensor:
    """Compute the logits of a batch, averaged over its views.

    Args:
        forward: Maps images ``(B, 3, H', W')`` to logits ``(B, C + 1, h', w')``.
        photos: The batch; all have the same grid at every scale.
        options: Scales and flip.

    Returns:
        ``(B, C + 1, h, w)``; the highest logit of each token is 0.
    """

    def logits_of(view: View) -> Tensor:
        images = torch.stack([photo.inputs[view.scale] for photo in photos])  # (B, 3, H', W')
        return forward(images.flip(-1) if view.mirrored else images)

    mean = averaged_over_views(logits_of, options.scales, options.flip, photos[0].grid)  # (B, C + 1, h, w)
    return mean - mean.amax(1, keepdim=True)


def segmenter_input(
    sample: Sample, image: Image.Image, options: PredictOptions, patch: int, mean: Sequence[float], std: Sequence[float]
) -> Photo:
    """Reduce a decoded image to ``long_side`` and resize it to every scale.

    Args:
        sample: Names the image.
        image: RGB.
        options: Scales and ``long_side``.
        patch: Patch side in pixels.
        mean: Per-channel mean in [0, 1], RGB order.
        std: Per-channel standard deviation in [0, 1], RGB order.
    """
    size = image.height, image.width
    share = min(1.0, (options.long_side or max(size)) / max(size))
    height, width = (max(1, round(side * share)) for side in size)
    grids = [token_grid(height, width, patch, scale) for scale in options.scales]
    inputs = (encoder_input(image, grid, patch, mean, std) for grid in grids)
    return Photo(sample, size, token_grid(height, width, patch), tuple(inputs), tuple(grids))


class Predictor:
    """A trained model behind the frozen CLIP, which computes the logits of batches of images. It holds no files.

    Args:
        encoder: The frozen CLIP.
        segmenter: The trained model.
        options: Scales, flip, ``long_side``.

    Raises:
        UsageError: The model does not fit the encoder.
    """

    def __init__(self, encoder: ClipEncoder, segmenter: Segmenter, options: PredictOptions) -> None:
        width, sizes = encoder.width, segmenter.decoder.sizes
        if segmenter.blocks > len(encoder.blocks) or sizes["width"] != width:
            found = f"{segmenter.blocks} blocks of width {sizes['width']}"
            raise UsageError(f"the model reads {found}, CLIP has {len(encoder.blocks)} of {width}", "--model")
        self.encoder = encoder
        self.blocks = segmenter.blocks
        self.decoder = segmenter.decoder.to(encoder.device)
        self.options = options

    def photo(self, sample: Sample, image: Image.Image) -> Photo:
        """Reduce a decoded image to ``long_side`` and resize it to every scale."""
        encoder = self.encoder
        return segmenter_input(sample, image, self.options, encoder.patch_size, encoder.mean, encoder.std)

    @torch.inference_mode()
    def logits(self, photos: Sequence[Photo]) -> Tensor:
        """Compute the logits of images of one padded size, averaged over scales and mirror images.

        Args:
            photos: A batch; all have the same grid at every scale.

        Returns:
            ``(B, C + 1, h, w)`` fp32, background first, on the grid of scale 1. The highest logit of each token is 0, which
            changes neither softmax nor argmax and keeps half precision exact where classes are close.
        """
        return mean_logits(self._pass, photos, self.options)

    def _pass(self, images: Tensor) -> Tensor:
        encoder = self.encoder
        tokens = encoder.encode(images, token_blocks=self.blocks)
        assert tokens.block_tokens is not None  # noqa: S101 - asked for
        blocks = tokens.block_tokens.float()  # (L, B, N, D)
        joint = None if self.decoder.text is None else encoder.tail(tokens.grid).project(blocks[-1])  # (B, N, E)
        half = encoder.device.type == "cuda" and encoder.dtype != torch.float32
        with torch.autocast(encoder.device.type, encoder.dtype, enabled=half):
            logits: Tensor = self.decoder(blocks, tokens.grid, joint=joint)[0]
        return logits.float()
