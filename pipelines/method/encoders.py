"""The frozen encoders of a run, which turn images into `Evidence` in one pass of each encoder that some part needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipelines.datasets.base import Sample
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.image import encoder_input, limited, tensor_input, token_grid
from pipelines.errors import ImageError
from pipelines.execution.devices import memory_of
from pipelines.method.aligned import AlignedText
from pipelines.method.evidence import CLIP_NEEDS, DINO_NEEDS, Evidence, Grid, Needs, TextFeatures
from pipelines.method.photo import Photo, View
from pipelines.ops.superpixels import mean_lab, token_membership
from pipelines.ops.transfer import sent

BYTES_A_PAIR = 20
"""Memory for each pair of tokens: five matrices in fp32 are held at once while attentions are averaged and fused."""


@dataclass(frozen=True)
class Blocks:
    """The numbers of blocks of each encoder that a run reads.

    Attributes:
        clip_attention: Last CLIP blocks whose attention is averaged.
        dino_attention: Last DINO blocks whose attention is averaged.
        clip_each: Last CLIP blocks whose attention is kept apart.
        clip_tokens: First CLIP blocks whose output is kept.
    """

    clip_attention: int = 0
    dino_attention: int = 0
    clip_each: int = 0
    clip_tokens: int = 0


class Encoders:
    """The frozen encoders, and the text that their features are compared with. They hold no files.

    Args:
        needs: Fields that the parts in use read; they decide which passes are made and what images are prepared for.
        clip: The frozen CLIP; its patches are the token grid.
        dino: The frozen DINO; None if ``needs`` contains nothing of DINO.
        text: Class and background embeddings; None if ``needs`` does not contain them.
        alignment: Alignment heads; None for plain CLIP.
        blocks: Numbers of blocks to read.
        long_side: Pixels of the long side at which larger images enter the encoders; 0 = any.
    """

    def __init__(
        self,
        needs: Needs,
        clip: ClipEncoder,
        dino: DinoEncoder | None = None,
        text: TextFeatures | None = None,
        alignment: AlignedText | None = None,
        blocks: Blocks = Blocks(),
        long_side: int = 0,
    ) -> None:
        self.needs, self.clip, self.dino, self.text, self.alignment, self.blocks = needs, clip, dino, text, alignment, blocks
        self.long_side, self.memory = long_side, memory_of(clip.device)

    def photo(
        self,
        sample: Sample,
        image: Image.Image,
        superpixels: NDArray[np.integer] | None = None,
        scales: Sequence[float] = (1.0,),
    ) -> Photo:
        """Resize a decoded image, or a part of one, for the encoders.

        Args:
            sample: Names the image and its labels.
            image: RGB.
            superpixels: ``(H, W)`` as ``image``, ids contiguous from 0; ignored if no part needs them.
            scales: Resolution factors of the image's views.

        Raises:
            ImageError: The superpixels are of another size, or missing although a part needs them.
        """
        size = (image.height, image.width)
        return self._photo(sample, size, partial(encoder_input, image), superpixels, scales, lambda: np.asarray(image))

    def photo_of_pixels(
        self,
        sample: Sample,
        pixels: Tensor,
        superpixels: NDArray[np.integer] | None = None,
        scales: Sequence[float] = (1.0,),
    ) -> Photo:
        """Do the same as `photo` for pixels ``(3, H, W)`` in [0, 1], which stay on their device and are resized by torch."""

        def image() -> NDArray[np.uint8]:
            array: NDArray[np.uint8] = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            return array

        size = (pixels.shape[1], pixels.shape[2])
        return self._photo(sample, size, partial(tensor_input, pixels), superpixels, scales, image)

    def _photo(
        self,
        sample: Sample,
        size: tuple[int, int],
        resized: Callable[[Grid, int, Sequence[float], Sequence[float]], Tensor],
        superpixels: NDArray[np.integer] | None,
        scales: Sequence[float],
        image: Callable[[], NDArray[np.uint8]],
    ) -> Photo:
        patch = self.clip.patch_size
        within = limited(*size, self.long_side)
        grids = [token_grid(*within, patch, scale) for scale in scales]
        self._check_memory(within, grids)
        memberships: tuple[Tensor, ...] = ()
        colours = None
        if "superpixels" in self.needs:
            if superpixels is None:
                raise ImageError("it has no superpixels", "run `ssr superpixels`")
            if superpixels.shape != size:
                raise ImageError(f"its superpixels are {superpixels.shape}, the image {size}", "ssr superpixels --force")
            memberships = tuple(token_membership(superpixels, grid) for grid in grids)
            if "superpixel_colours" in self.needs:
                colours = mean_lab(image(), superpixels)

        def inputs(encoder: ClipEncoder | DinoEncoder) -> tuple[Tensor, ...]:
            return tuple(resized(grid, encoder.patch_size, encoder.mean, encoder.std) for grid in grids)

        return Photo(
            sample,
            size,
            token_grid(*within, patch),
            inputs(self.clip) if self.needs & CLIP_NEEDS else (),
            tuple(grids),
            inputs(self.dino) if self.dino is not None else (),
            memberships,
            colours,
        )

    def _check_memory(self, size: tuple[int, int], grids: Sequence[Grid]) -> None:
        """Refuse an image whose attention alone would fill the memory, because the machine would swap for hours.

        Raises:
            ImageError: Names the memory that is needed, the memory that is there, and the long side that fits.
        """
        tokens, patch = max(height * width for height, width in grids), self.clip.patch_size
        needed = BYTES_A_PAIR * tokens**2
        if needed > self.memory:
            fits = int(max(size) * (self.memory / needed) ** 0.5) // patch * patch
            found = f"needs {needed / 2**30:.1f} GiB of memory, found {self.memory / 2**30:.1f} GiB"
            raise ImageError(
                f"{size[1]} x {size[0]} pixels are {tokens:,} tokens, whose attention {found}", f"--long-side {fits}"
            )

    @torch.no_grad()
    def encode(self, photos: Sequence[Photo], view: View = View()) -> Evidence:  # noqa: B008 - a constant
        """Run each encoder that is needed once.

        Args:
            photos: A batch; all have the same grid in this view.
            view: Resolution, and whether the images are mirrored.

        Returns:
            The fields that ``needs`` names.
        """
        clip, device = self.clip, self.clip.device
        fields: dict[str, Any] = {}
        grid = photos[0].grids[view.scale]
        if self.needs & CLIP_NEEDS:
            depth, blocks = len(clip.blocks), self.blocks
            attention = blocks.clip_attention if "clip_attention" in self.needs else 0
            tokens = clip.encode(
                self._input(photos, view),
                range(max(0, depth - attention), depth),
                blocks.clip_tokens,
                range(max(0, depth - blocks.clip_each), depth),
                "clip_inputs" in self.needs,
            )
            fields |= {
                "tail": clip.tail(grid),
                "tokens_cls": tokens.tokens_cls,
                "clip_attention": tokens.attention,
                "clip_block_attention": tokens.block_attention,
                "clip_block_tokens": tokens.block_tokens,
            }
            if "clip_inputs" in self.needs:
                fields |= {"clip_inputs": tokens.inputs, "clip_opened": clip.opened(grid)}
        if self.dino is not None and self.needs & DINO_NEEDS:
            depth = len(self.dino.blocks)
            averaged = range(max(0, depth - max(1, self.blocks.dino_attention)), depth)
            dino = self.dino.encode(self._input(photos, view, dino=True), averaged)
            fields |= {"dino_tokens": dino.tokens, "dino_attention": dino.attention}
        if "superpixels" in self.needs:
            membership = sent(pad_sequence([photo.superpixels[view.scale] for photo in photos], True), device)  # (B, S, N)
            if view.mirrored:
                membership = membership.view(*membership.shape[:2], *grid).flip(-1).flatten(2)
            fields["superpixels"] = membership
        if "superpixel_colours" in self.needs:
            colours = [torch.from_numpy(photo.superpixel_colours).float() for photo in photos]  # (S, 3) each
            fields["superpixel_colours"] = sent(pad_sequence(colours, True), device)  # (B, S, 3)
        fields |= {"text": self.text, "alignment": self.alignment}
        labels = tuple(photo.sample.labels for photo in photos)
        return Evidence(grid, labels, **{name: value for name, value in fields.items() if value is not None})

    def _input(self, photos: Sequence[Photo], view: View, dino: bool = False) -> Tensor:
        images = torch.stack([(photo.dino_inputs if dino else photo.inputs)[view.scale] for photo in photos])
        images = sent(images, self.clip.device)
        return images.flip(-1) if view.mirrored else images  # (B, 3, H', W')
