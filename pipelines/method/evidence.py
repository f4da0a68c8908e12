"""The data that the encoders compute for a batch of images on one token grid, and the needs by which a part requests them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipelines.errors import SsrError
from pipelines.ops.transfer import sent
from pipelines.plugins import called

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

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Types of maps and affinities."""

CLIP_NEEDS: Needs = frozenset({"tokens_cls", "clip_attention", "clip_block_attention", "clip_block_tokens", "clip_inputs"})
"""Fields that one pass of CLIP's image tower yields."""

DINO_NEEDS: Needs = frozenset({"dino_tokens", "dino_attention"})
"""Fields that one pass of DINO yields."""

SUPERPIXEL_NEEDS: Needs = frozenset({"superpixels", "superpixel_colours"})
"""Fields that are computed from an image's superpixels."""


@dataclass(frozen=True)
class TextFeatures:
    """Class and background embeddings on the device.

    Attributes:
        all: ``(C + M, E)`` fp32, L2-normalised: classes, then background words.
        classes: Number of classes C.
        logit_scale: CLIP's own scale of the cosines, about 100.
        supers: Super-class embeddings ``(S, E)`` fp32, L2-normalised; None unless a part needs ``super_classes``.
        super_of_class: Row of ``supers`` of each class, C numbers; empty unless a part needs ``super_classes``.
    """

    all: Tensor
    classes: int
    logit_scale: float
    supers: Tensor | None = None
    super_of_class: tuple[int, ...] = ()

    def of(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of each image's classes, followed by those of all background words.

        Args:
            classes: ``(B, K)`` class indices, -1 in empty slots (`Evidence.classes`).

        Returns:
            Embeddings ``(B, K + M, E)``; ``(B, K + M)`` bool: True in the empty slots, which have no text.
        """
        background = torch.arange(self.classes, len(self.all), device=classes.device).expand(len(classes), -1)  # (B, M)
        index = torch.cat([classes, background], dim=1)  # (B, K + M)
        return self.all[index.clamp_min(0)], index < 0


class Evidence:
    """The encoders' outputs for a batch of B images. A field that no part needs is absent, and reading it is an error.

    Attributes:
        grid: ``(h, w)`` with ``h * w == N`` tokens in row-major order.
        labels: Class indices present in each image; T counts the (image, class) pairs of the batch, image by image.
        tail: The modules that follow ``tokens_cls``.
        tokens_cls: Tokens that enter CLIP's last block, ``(B, P + N, D)`` fp32 with P prefix tokens.
        clip_attention: Mean attention of CLIP's last blocks, ``(B, N, N)``, row = receiver, column = source.
        clip_block_attention: Attention of single blocks of CLIP, ``(A, B, N, N)``.
        clip_block_tokens: Output of CLIP's first blocks, ``(L, B, N, D)``.
        clip_inputs: Input of each block of CLIP, first to last, ``(B, P + N, D)`` each.
        clip_opened: The attention of each block, in its separate steps; present together with ``clip_inputs``.
        dino_tokens: Tokens that enter DINO's last block, ``(B, N, D)``.
        dino_attention: Mean attention of DINO's last blocks, ``(B, N, N)``.
        superpixels: Share of each token in each superpixel, ``(B, S, N)`` fp32; images with fewer superpixels end in zero rows.
        superpixel_colours: Mean Lab colours, ``(B, S, 3)`` fp32.
        text: Class and background embeddings.
        alignment: The alignment heads, and the text projected by them.
        asked: ``(T,)`` bool on the host: the maps that a read-out has to make; others may stay 0. Absent where all are needed.
        valid: ``(B, N)`` bool: tokens of the image, not of the padding; absent where there is no padding.
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
    superpixels: Tensor
    superpixel_colours: Tensor
    text: TextFeatures
    alignment: AlignedText
    asked: Tensor
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
        """Return the same batch with other or further fields."""
        return Evidence(**{**self.__dict__, **fields})

    @property
    def counts(self) -> list[int]:
        """Number of classes of each image; their sum is T."""
        return [len(labels) for labels in self.labels]

    def by_image(self, maps: Tensor) -> Iterator[Tensor]:
        """Split ``(T, N)`` into the maps ``(K, N)`` of each image."""
        return iter(torch.split(maps, self.counts))

    def classes(self, device: torch.device) -> Tensor:
        """Return ``labels`` as ``(B, K)`` int64 on a device, -1 in the empty slots of images with fewer than K classes."""
        rows = [torch.tensor(labels, dtype=torch.int64) for labels in self.labels]
        return sent(pad_sequence(rows, batch_first=True, padding_value=-1), device)

    def padded(self, maps: Tensor) -> Tensor:
        """Reshape ``(T, ...)`` to ``(B, K, ...)``, zero in the empty slots of images with fewer than K classes."""
        most = max(self.counts)
        empty = maps.new_zeros(len(self.labels) * most, *maps.shape[1:])
        return empty.index_copy(0, self._slots(maps.device), maps).view(len(self.labels), most, *maps.shape[1:])

    def flat(self, maps: Tensor) -> Tensor:
        """Reshape ``(B, K, ...)`` to ``(T, ...)``, which reverses `padded`."""
        return maps.flatten(0, 1)[self._slots(maps.device)]

    def _slots(self, device: torch.device) -> Tensor:
        """Return the place of each (image, class) pair in ``(B * K,)``, ``(T,)``, computed on the host, where labels are."""
        most = max(self.counts)
        places = [image * most + rank for image, count in enumerate(self.counts) for rank in range(count)]
        return sent(torch.tensor(places, dtype=torch.int64), device)


Options = TypeVar("Options", contravariant=True)
Call = TypeVar("Call", bound=Callable[..., Any])


@dataclass(frozen=True)
class Part(Generic[Call, Options]):
    """One exchangeable part of the method, as a table holds it.

    Attributes:
        call: The part itself.
        needs: Maps the options to the fields of `Evidence` that the part reads with them.
        options: Names of the options that change its result; manifests compare them while the part is in use.
        title: What messages call it, such as ``affinity 'row'``; `pipelines.method.parts_in_use` sets it.
    """

    call: Call
    needs: Callable[[Options], Needs]
    options: tuple[str, ...] = ()
    title: str = field(default="part", kw_only=True)

    def made(self, shape: tuple[int, ...], *arguments: object, dtypes: tuple[torch.dtype, ...] = FLOATS) -> Tensor:
        """Call the part, and check what it returns.

        Args:
            shape: Expected shape.
            *arguments: Arguments of ``call``.
            dtypes: Expected types.

        Raises:
            SsrError: It returned something else, or is of a plugin and raised an error.
        """
        result = called(self.title, self.call, *arguments)
        if not isinstance(result, Tensor) or tuple(result.shape) != shape or result.dtype not in dtypes:
            seen = f"{_type(result.dtype)} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise SsrError(f"{self.title} returned {seen}, expected {' or '.join(map(_type, dtypes))} {shape}")
        return result


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def always(*names: Need) -> Callable[[object], Needs]:
    """Return needs that do not depend on options."""
    needs = frozenset(names)
    return lambda _: needs
