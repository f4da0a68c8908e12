"""From photos to a segmentation model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.image import encoder_input, token_grid
from pipelines.errors import UsageError
from pipelines.method.photo import Photo
from pipelines.models.segmenter import Segmenter
from pipelines.options.train import PredictOptions


class MakesLogits(Protocol):
    """What turns photos into logits; see `Predictor`."""

    def load(self, sample: Sample) -> Photo:
        """Decode and resize a photo."""

    def logits(self, photos: Sequence[Photo]) -> Tensor:
        """``(B, C + 1, h, w)`` of a batch."""


class Predictor:
    """Logits of batches of photos; holds no files.

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

    def load(self, sample: Sample) -> Photo:
        """Decode a photo, reduce it to ``long_side`` and resize it to every scale.

        Raises:
            ImageError: The file cannot be used.
        """
        image, encoder = load_image(sample.image_path), self.encoder
        size, patch = (image.height, image.width), encoder.patch_size
        share = min(1.0, (self.options.long_side or max(size)) / max(size))
        height, width = (max(1, round(side * share)) for side in size)
        grids = [token_grid(height, width, patch, scale) for scale in self.options.scales]
        inputs = (encoder_input(image, grid, patch, encoder.mean, encoder.std) for grid in grids)
        return Photo(sample, size, token_grid(height, width, patch), tuple(inputs))

    @torch.inference_mode()
    def logits(self, photos: Sequence[Photo]) -> Tensor:
        """Logits of photos of one padded size, averaged over scales and mirror images.

        Args:
            photos: A batch; all have the same grid at every scale.

        Returns:
            ``(B, C + 1, h, w)`` fp32, background first, on the grid of scale 1; the highest of each token is 0, which
            changes neither softmax nor argmax, and leaves half precision exact where classes are close.
        """
        grid = photos[0].grid
        passes: list[Tensor] = []
        for scale in range(len(self.options.scales)):
            images = torch.stack([photo.inputs[scale] for photo in photos])  # (B, 3, H', W')
            for mirrored in (False, True)[: 1 + self.options.flip]:
                found = self._pass(images.flip(-1)).flip(-1) if mirrored else self._pass(images)  # (B, C + 1, h', w')
                passes.append(F.interpolate(found, size=grid, mode="bilinear"))
        mean = torch.stack(passes).mean(0)  # (B, C + 1, h, w)
        return mean - mean.amax(1, keepdim=True)

    def _pass(self, images: Tensor) -> Tensor:
        encoder = self.encoder
        tokens = encoder.encode(images, token_blocks=self.blocks)
        assert tokens.block_tokens is not None  # noqa: S101 - asked for
        half = encoder.device.type == "cuda" and encoder.dtype != torch.float32
        with torch.autocast(encoder.device.type, encoder.dtype, enabled=half):
            logits: Tensor = self.decoder(tokens.block_tokens.float(), tokens.grid)[0]
        return logits.float()
