"""Pictures to train the embedded models on: drawn like the embedded set, from seeds that it never uses."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.sample.picture import draw_picture
from pipelines.sample.scenes import SCENES

SIDE = 128
"""Pixels."""

SMALLEST = 0.2
"""Objects are somewhat larger than in the embedded set, so that its larger pictures show them at a like size in patches."""

TRAINING_SEED = 7_000_000
"""First seed; a number alone, where the embedded set's generators have two."""

_CHUNK = 250


@dataclass(frozen=True)
class Described:
    """What words can tell: classes with colours and boxes, the scene's word, clutter, and the labels."""

    objects: tuple[tuple[str, str], ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    scene: str
    clutter: tuple[str, ...]
    labels: tuple[int, ...]

    def phrases(self) -> set[str]:
        """Every phrase that is true of the picture."""
        names = {name for name, _ in self.objects}
        coloured = {f"{colour} {name}" for name, colour in self.objects}
        return names | coloured | {self.scene, *self.clutter}

    def regions(self) -> list[tuple[tuple[float, float, float, float], set[str]]]:
        """Boxes and the phrases that are true of them."""
        phrases = [{name, f"{colour} {name}"} for name, colour in self.objects]
        return list(zip(self.boxes, phrases, strict=True))


def _draw(first_seed: int) -> tuple[NDArray[np.uint8], list[Described]]:
    images = np.empty((_CHUNK, SIDE, SIDE, 3), np.uint8)
    described = []
    for index in range(_CHUNK):
        picture = draw_picture(np.random.default_rng(first_seed + index), SIDE, SIDE, SMALLEST)
        images[index] = picture.image
        described.append(Described(picture.objects, picture.boxes, SCENES[picture.scene][1], picture.clutter, picture.labels))
    return images, described


def drawn_images(count: int) -> tuple[NDArray[np.uint8], list[Described]]:
    """Draw in all cores.

    Returns:
        ``(count, 128, 128, 3)`` uint8 RGB, and what is in each.
    """
    count = -(-count // _CHUNK) * _CHUNK
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    described: list[Described] = []
    with ProcessPoolExecutor() as pool:
        for chunk, (pixels, words) in enumerate(pool.map(_draw, range(TRAINING_SEED, TRAINING_SEED + count, _CHUNK))):
            images[chunk * _CHUNK : (chunk + 1) * _CHUNK] = pixels
            described += words
            if chunk % 20 == 0:
                print(f"drawn {len(described)} of {count}", flush=True)
    return images, described


def for_half_size(kernel: Tensor) -> Tensor:
    """Patch embedding for patches of 8 pixels from one for 16: what the kernel sees of a patch enlarged twice (bilinear).

    The models are trained on few patches, which is fast, and then look at pictures with patches of half the size.
    """
    basis = torch.eye(64).view(64, 1, 8, 8)
    enlarge = F.interpolate(basis, scale_factor=2, mode="bilinear", align_corners=False).flatten(1)  # (64, 256)
    return (kernel.flatten(2) @ enlarge.T).unflatten(-1, (8, 8))
