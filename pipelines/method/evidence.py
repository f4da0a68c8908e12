"""What is known about a batch of photos on one token grid, and how a part of the method says what it needs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from pipelines.encoders.tower import Tail
    from pipelines.method.aligned import AlignedText
    from pipelines.ops.attention import OpenAttention

Grid = tuple[int, int]

Need = Literal[
    "tokens_cls",
    "clip_attention",
    "clip_block_attention",
    "clip_block_tokens",
    "clip_inputs",
    "dino_tokens",
    "dino_attention",
    "superpixels",
    "superpixel_colours",
    "text",
    "super_classes",
    "alignment",
]
Needs = frozenset[Need]

CLIP_NEEDS: Needs = frozenset({"tokens_cls", "clip_attention", "clip_block_attention", "clip_block_tokens", "clip_inputs"})
"""What one pass of CLIP's image tower gives."""

DINO_NEEDS: Needs = frozenset({"dino_tokens", "dino_attention"})
"""What one pass of DINO gives."""

SUPERPIXEL_NEEDS: Needs = frozenset({"superpixels", "superpixel_colours"})
"""What is computed from a photo's superpixels."""


@dataclass(frozen=True)
class TextFeatures:
    """Class and background embeddings on the device.

    Attributes:
        all: ``(C + M, E)`` fp32, L2-normalised: classes, then background words.
        classes: Number of classes C.
        logit_scale: CLIP's own scale of the cosines, about 100.
        supers: Super-class embeddings ``(S, E)`` fp32, L2-normalised; None unless a part needs ``super_classes``.
    """

    all: Tensor
    classes: int
    logit_scale: float
    supers: Tensor | None = None

    def of(self, labels: tuple[int, ...]) -> Tensor:
        """An image's classes, then all background words, ``(K + M, E)``."""
        return torch.cat([self.all[list(labels)], self.all[self.classes :]])


class Evidence:
    """A batch of B photos behind the encoders. A field that no part asked for is absent, and reading it is an error.

    Attributes:
        grid: ``(h, w)`` with ``h * w == N`` tokens in row-major order.
        labels: Class indices present in each image; T counts the (image, class) pairs of the batch, image by image.
        tail: The modules behind ``tokens_cls``.
        tokens_cls: Tokens that enter CLIP's last block, ``(B, P + N, D)`` fp32 with P prefix tokens.
        clip_attention: Mean attention of CLIP's last blocks, ``(B, N, N)``, row = receiver, column = source.
        clip_block_attention: Attention of single blocks of CLIP, ``(A, B, N, N)``.
        clip_block_tokens: Output of CLIP's first blocks, ``(L, B, N, D)``.
        clip_inputs: What enters each block of CLIP, first to last, ``(B, P + N, D)`` each.
        clip_opened: The attention of each block, taken apart; comes with ``clip_inputs``.
        dino_tokens: Tokens that enter DINO's last block, ``(B, N, D)``.
        dino_attention: Mean attention of DINO's last blocks, ``(B, N, N)``.
        superpixels: Share of each token in each superpixel, ``(S, N)`` an image.
        superpixel_colours: Mean Lab colours, ``(S, 3)`` an image.
        text: Class and background embeddings.
        alignment: The text behind the alignment heads, and the heads.
        valid: ``(B, N)`` bool, tokens that are photo and not padding; absent where there is no padding.
    """

    tail: Tail
    tokens_cls: Tensor
    clip_attention: Tensor
    clip_block_attention: Tensor
    clip_block_tokens: Tensor
    clip_inputs: tuple[Tensor, ...]
    clip_opened: tuple[OpenAttention, ...]
    dino_tokens: Tensor
    dino_attention: Tensor
    superpixels: tuple[Tensor, ...]
    superpixel_colours: tuple[NDArray[np.float64], ...]
    text: TextFeatures
    alignment: AlignedText
    valid: Tensor

    def __init__(self, grid: Grid, labels: tuple[tuple[int, ...], ...], **fields: Any) -> None:
        self.grid = grid
        self.labels = labels
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"evidence has no {name!r}: the part that reads it does not name it in its needs")

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    def replacing(self, **fields: Any) -> Evidence:
        """The same batch with other or further fields."""
        return Evidence(**{**self.__dict__, **fields})

    @property
    def counts(self) -> list[int]:
        """Number of classes of each image; their sum is T."""
        return [len(labels) for labels in self.labels]

    def by_image(self, maps: Tensor) -> Iterator[Tensor]:
        """The maps ``(K, N)`` of each image, of ``(T, N)``."""
        return iter(torch.split(maps, self.counts))


Options = TypeVar("Options", contravariant=True)
Call = TypeVar("Call", bound=Callable[..., Any])


@dataclass(frozen=True)
class Part(Generic[Call, Options]):
    """One exchangeable part of the method, as it stands in a table.

    Attributes:
        call: The part itself.
        needs: From the options to the fields of `Evidence` that the part reads with them.
        options: Names of the options that change its result; they count in manifests while the part is in use.
    """

    call: Call
    needs: Callable[[Options], Needs]
    options: tuple[str, ...] = ()


def always(*names: Need) -> Callable[[object], Needs]:
    """Needs that do not depend on options."""
    needs = frozenset(names)
    return lambda _: needs
