"""Photos through CLIP and DINO on one grid, for the refinement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder, ClipTokens
from pipelines.encoders.dino import DinoEncoder, DinoTokens
from pipelines.encoders.image import encoder_input, token_grid
from pipelines.errors import ImageError
from pipelines.method.refinement import GridSuperpixels
from pipelines.ops.superpixels import mean_lab, token_membership
from pipelines.options.stages import RefineOptions


@dataclass(frozen=True)
class Photo:
    """A decoded photo, resized for both encoders to one grid.

    Attributes:
        sample: Which photo.
        grid: Token grid ``(h, w)``.
        clip_input: ``(3, 16 h, 16 w)``.
        dino_input: ``(3, P h, P w)`` with DINO's patch size P.
        superpixels: On the same grid, or None if no option asks for them.
    """

    sample: Sample
    grid: tuple[int, int]
    clip_input: Tensor
    dino_input: Tensor
    superpixels: GridSuperpixels | None


@dataclass(frozen=True)
class Encoded:
    """A batch behind both encoders.

    Attributes:
        clip: Tokens and attention, or None if CLIP was left out.
        dino: The same of DINO.
    """

    clip: ClipTokens | None
    dino: DinoTokens | None

    def attention_of(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """CLIP's and DINO's attention ``(N, N)`` in one image of the batch."""
        clip = None if self.clip is None or self.clip.attention is None else self.clip.attention[index]
        return clip, None if self.dino is None else self.dino.attention[index]

    def dino_tokens_of(self, index: int) -> Tensor | None:
        """DINO's tokens ``(N, D)`` of one image of the batch."""
        return None if self.dino is None else self.dino.tokens[index]


class EncoderPair:
    """Runs the encoders over batches; holds no files.

    Args:
        clip: The frozen CLIP.
        dino: The frozen DINO.
        options: ``clip_blocks`` and ``dino_blocks``; 0 leaves an encoder out.
        token_blocks: CLIP blocks, from the first, whose tokens are kept.
        each_block: Last CLIP blocks whose attention is kept apart.
    """

    def __init__(
        self,
        clip: ClipEncoder,
        dino: DinoEncoder | None,
        options: RefineOptions,
        token_blocks: int = 0,
        each_block: int = 0,
    ) -> None:
        self.clip = clip
        self.dino = dino
        depth = len(clip.blocks)
        self._token_blocks = token_blocks
        self._each_block = range(max(0, depth - each_block), depth)
        self._clip_blocks = range(max(0, depth - options.clip_blocks), depth)
        self._dino_blocks = range(0)
        if dino is not None:
            self._dino_blocks = range(max(0, len(dino.blocks) - options.dino_blocks), len(dino.blocks))

    def load(self, sample: Sample, superpixels: NDArray[np.integer] | None, colours: bool) -> Photo:
        """Decode a photo and resize it for both encoders.

        Args:
            sample: The photo.
            superpixels: Its superpixels ``(H, W)``, or None if no option asks for them.
            colours: Also compute the superpixels' mean colours.

        Raises:
            ImageError: The file cannot be used, or its superpixels are of another size.
        """
        image = load_image(sample.image_path)
        if superpixels is not None and superpixels.shape != (image.height, image.width):
            raise ImageError(
                f"its superpixels are {superpixels.shape}, the photo {image.height, image.width}", "ssr superpixels --force"
            )
        return self.photo(sample, image, superpixels, colours)

    def photo(self, sample: Sample, image: Image.Image, superpixels: NDArray[np.integer] | None, colours: bool) -> Photo:
        """Resize a decoded photo, or a part of one, for both encoders.

        Args:
            sample: The photo.
            image: RGB.
            superpixels: ``(H, W)`` as ``image``, ids contiguous from 0, or None if no option asks for them.
            colours: Also compute the superpixels' mean colours.
        """
        clip, dino = self.clip, self.dino
        grid = token_grid(image.height, image.width, clip.patch_size)
        clip_input = encoder_input(image, grid, clip.patch_size, clip.mean, clip.std)
        dino_input = encoder_input(image, grid, dino.patch_size, dino.mean, dino.std) if dino else torch.empty(0)
        on_grid = None
        if superpixels is not None:
            lab = mean_lab(np.asarray(image), superpixels) if colours else None
            on_grid = GridSuperpixels(token_membership(superpixels, grid), lab)
        return Photo(sample, grid, clip_input, dino_input, on_grid)

    def encode(self, photos: Sequence[Photo], clip_tokens: bool = False) -> Encoded:
        """Run the encoders over photos of one grid.

        Args:
            photos: The batch.
            clip_tokens: CLIP's tokens are wanted although its attention may not be.
        """
        clip = dino = None
        if self._clip_blocks or self._token_blocks or clip_tokens:
            images = torch.stack([p.clip_input for p in photos])
            clip = self.clip.encode(images, self._clip_blocks, self._token_blocks, self._each_block)
        if self.dino is not None:
            dino = self.dino.encode(torch.stack([p.dino_input for p in photos]), self._dino_blocks)
        return Encoded(clip, dino)
