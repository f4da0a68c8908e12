"""Pictures to train the embedded models on: drawn like the embedded set, from seeds that it never uses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.sample.objects import OBJECTS
from pipelines.sample.picture import CLASSES, Picture, draw_picture
from pipelines.sample.scenes import SCENES

TRAINING_SEED = 7_000_000
"""First seed; a number alone, where the embedded set's generators have two."""

_CHUNK = 250
_BOXES = 8


@dataclass(frozen=True)
class Size:
    """Which pictures are drawn.

    Attributes:
        height: Pixels.
        width: Pixels.
        smallest: Size of the smallest object, see `draw_picture`.
        first: Added to `TRAINING_SEED`.
    """

    height: int
    width: int
    smallest: float
    first: int = 0


SMALL = Size(128, 128, 0.2)
"""More than twice as fast to draw. Objects are somewhat larger than in the embedded set, as they are seen in large patches."""

LARGE = Size(208, 256, 0.13, first=500_000)
"""As those of the embedded set."""


def all_phrases() -> list[str]:
    """Every phrase that can be true of a picture, in alphabetic order."""
    phrases = {name for _, word, clutter in SCENES.values() for name in (word, *clutter)}
    for name, (_, _, colours) in OBJECTS.items():
        phrases |= {name, *(f"{colour} {name}" for colour in colours)}
    return sorted(phrases)


COLUMN = {phrase: column for column, phrase in enumerate(all_phrases())}
"""Place of each phrase among all M."""


@dataclass(frozen=True)
class Drawn:
    """Drawn pictures, and what words can tell of them.

    Attributes:
        images: ``(P, H, W, 3)`` uint8 RGB.
        things: ``(P, H, W)`` uint8, which thing each pixel shows; see `pipelines.sample.picture.Picture`.
        boxes: ``(P, 8, 4)`` fp32: left, top, right, bottom of each object as shares of width and height; empty boxes are zeros.
        phrases: ``(P, 8, M)`` bool: phrases that are true of each box.
        scene: ``(P,)`` int64: the phrase that is true of what is in no box.
        whole: ``(P, M)`` bool: phrases that are true of the picture, those of its boxes not among them.
        labels: ``(P, C)`` bool: the classes.
    """

    images: Tensor
    things: Tensor
    boxes: Tensor
    phrases: Tensor
    scene: Tensor
    whole: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def chosen(self, indices: Tensor) -> Drawn:
        """Some of them."""
        return self._of_each(lambda field: field[indices])

    def to(self, device: torch.device) -> Drawn:
        """All of them on a device."""
        return self._of_each(lambda field: field.to(device))

    def _of_each(self, change: Callable[[Tensor], Tensor]) -> Drawn:
        return Drawn(**{field.name: change(getattr(self, field.name)) for field in dataclasses.fields(self)})


def described(pictures: list[Picture]) -> Drawn:
    """Put pictures of one size together."""
    count, phrases = len(pictures), len(COLUMN)
    boxes, true_of_box = torch.zeros(count, _BOXES, 4), torch.zeros(count, _BOXES, phrases, dtype=torch.bool)
    scene, whole = torch.zeros(count, dtype=torch.int64), torch.zeros(count, phrases, dtype=torch.bool)
    labels = torch.zeros(count, len(CLASSES), dtype=torch.bool)
    for row, picture in enumerate(pictures):
        for place, ((name, colour), box) in enumerate(zip(picture.objects, picture.boxes, strict=True)):
            boxes[row, place] = torch.tensor(box)
            true_of_box[row, place, [COLUMN[name], COLUMN[f"{colour} {name}"]]] = True
        scene[row] = COLUMN[SCENES[picture.scene][1]]
        whole[row, [int(scene[row]), *(COLUMN[word] for word in picture.clutter)]] = True
        labels[row, list(picture.labels)] = True
    images, things = (torch.from_numpy(np.stack([getattr(one, name) for one in pictures])) for name in ("image", "things"))
    return Drawn(images, things, boxes, true_of_box, scene, whole, labels)


def _draw(first_seed: int, size: Size, count: int = _CHUNK) -> Drawn:
    seeds = range(first_seed, first_seed + count)
    return described([draw_picture(np.random.default_rng(seed), size.height, size.width, size.smallest) for seed in seeds])


def _draw_arrays(first_seed: int, size: Size) -> dict[str, np.ndarray]:
    drawn = _draw(first_seed, size)  # arrays pass between processes without the shared memory that tensors ask for
    return {field.name: getattr(drawn, field.name).numpy() for field in dataclasses.fields(drawn)}


def drawn_images(count: int, size: Size) -> Drawn:
    """Draw in all cores, in chunks of 250."""
    first = TRAINING_SEED + size.first
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(partial(_draw_arrays, size=size), range(first, first + count, _CHUNK)))
    drawn = Drawn(**{name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]})
    print(f"drawn {len(drawn)} pictures of {size.width} x {size.height}", flush=True)
    return drawn


@dataclass(frozen=True)
class Crops:
    """Square parts of pictures, some of them mirrored.

    Attributes:
        top: ``(B,)`` upper border in pixels, not whole ones.
        left: ``(B,)`` left border.
        side: ``(B,)`` pixels.
        mirrored: ``(B,)`` bool.
    """

    top: Tensor
    left: Tensor
    side: Tensor
    mirrored: Tensor

    @staticmethod
    def random(drawn: Drawn, smallest: float, largest: float) -> Crops:
        """One of each picture, of a side between two numbers of pixels, as many of half a side as of twice that."""
        count, (height, width), device = len(drawn), drawn.things.shape[1:], drawn.things.device
        draws = torch.rand(4, count).to(device)
        side = torch.exp(math.log(smallest) + draws[0] * math.log(largest / smallest))
        return Crops(draws[1] * (height - side), draws[2] * (width - side), side, draws[3] < 0.5)

    @staticmethod
    def middle(drawn: Drawn) -> Crops:
        """The largest of each picture."""
        height, width = drawn.things.shape[1:]
        side = torch.full((len(drawn),), float(min(height, width)), device=drawn.things.device)
        return Crops((height - side) / 2, (width - side) / 2, side, torch.zeros_like(side, dtype=torch.bool))

    def pixels(self, drawn: Drawn, side: int) -> Tensor:
        """``(B, 3, side, side)`` in [0, 1]."""
        return self._sampled(drawn.images.permute(0, 3, 1, 2).float() / 255, side, "bilinear")

    def things(self, drawn: Drawn, grid: int) -> tuple[Tensor, Tensor]:
        """What each patch shows most of, ``(B, N)`` int64, and its share of the patch, ``(B, N)`` in [0, 1]."""
        numbers = self._sampled(drawn.things.float().unsqueeze(1), grid * 4, "nearest").long()
        shown = F.one_hot(numbers.squeeze(1)).permute(0, 3, 1, 2).float()  # (B, things, 4h, 4w)
        share, thing = F.avg_pool2d(shown, 4).flatten(2).max(dim=1)  # (B, N) each
        return thing, share

    def phrases(self, drawn: Drawn, grid: int) -> tuple[Tensor, Tensor]:
        """Phrases true of each crop ``(B, M)`` and of each of its patches ``(B, N, M)``, fp32 of 0 and 1.

        Of a patch, those of the boxes that its centre is in, or else the scene's.
        """
        height, width = drawn.things.shape[1:]
        left, right = ((drawn.boxes[..., edge] * width - self.left[:, None]) / self.side[:, None] for edge in (0, 2))  # (B, 8)
        top, bottom = ((drawn.boxes[..., edge] * height - self.top[:, None]) / self.side[:, None] for edge in (1, 3))
        flip = self.mirrored[:, None]
        left, right = torch.where(flip, 1 - right, left), torch.where(flip, 1 - left, right)
        centre = (torch.arange(grid, device=left.device) + 0.5) / grid
        rows = (centre > top[..., None]) & (centre < bottom[..., None])  # (B, 8, h)
        columns = (centre > left[..., None]) & (centre < right[..., None])  # (B, 8, w)
        inside = (rows.unsqueeze(3) & columns.unsqueeze(2)).flatten(2).float()  # (B, 8, N)
        true_of_box = drawn.phrases.float()  # (B, 8, M)
        patches = (inside.transpose(1, 2) @ true_of_box).clamp(max=1)  # (B, N, M)
        scene = F.one_hot(drawn.scene, true_of_box.shape[2]).float()  # (B, M)
        patches = torch.where(inside.amax(1).unsqueeze(2) > 0, patches, scene.unsqueeze(1))
        of_boxes = (inside.amax(2).unsqueeze(2) * true_of_box).amax(1)  # (B, M)
        return torch.maximum(of_boxes, drawn.whole.float()), patches

    def _sampled(self, maps: Tensor, side: int, mode: str) -> Tensor:
        count, _, height, width = maps.shape
        theta = torch.zeros(count, 2, 3, device=maps.device)
        theta[:, 0, 0] = torch.where(self.mirrored, -self.side, self.side) / width
        theta[:, 1, 1] = self.side / height
        theta[:, 0, 2] = 2 * (self.left + self.side / 2) / width - 1
        theta[:, 1, 2] = 2 * (self.top + self.side / 2) / height - 1
        places = F.affine_grid(theta, [count, 1, side, side], align_corners=False)
        return F.grid_sample(maps, places, mode, "border", align_corners=False)


def thing_loss(attention: Tensor, thing: Tensor, share: Tensor) -> Tensor:
    """How far each patch's attention is from going to all patches of its own thing alike.

    Args:
        attention: ``(B, N, N)``, rows sum to 1.
        thing: ``(B, N)`` what each patch shows most of.
        share: ``(B, N)`` how much; patches on a border are left out.

    Returns:
        Cross-entropy less what uniform attention would have, 0 for that and lower where it is better. A thing of ``n`` patches
        weighs as much as the square root of ``n``, as every patch alike would make it a loss of the scene.
    """
    same = (thing.unsqueeze(2) == thing.unsqueeze(1)).float()  # (B, N, N)
    count = same.sum(dim=2)  # (B, N)
    fit = ((attention.float() + 1e-6).log() * same).sum(dim=2) / count  # (B, N)
    weight = (share > 0.6) / count.sqrt()  # (B, N)
    return -(fit * weight).sum() / weight.sum() - math.log(attention.shape[2])


def for_half_size(kernel: Tensor) -> Tensor:
    """Patch embedding for patches of 8 pixels from one for 16: what the kernel sees of a patch enlarged twice (bilinear).

    DINO is trained with few patches, which is fast, and then looks at pictures with patches of half the size.
    """
    basis = torch.eye(64).view(64, 1, 8, 8)
    enlarge = F.interpolate(basis, scale_factor=2, mode="bilinear", align_corners=False).flatten(1)  # (64, 256)
    return (kernel.flatten(2) @ enlarge.T).unflatten(-1, (8, 8))
