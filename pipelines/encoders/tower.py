"""A frozen vision transformer, split into its blocks, their attention, and the part behind the last block's input.

An adapter makes a library's model a `VisionTower`; `walk` is the one pass over its blocks that every encoder uses. Only
adapters depend on the place of prefix tokens (CLS, registers) and on the packing of queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from pipelines.ops.attention import OpenAttention

Grid = tuple[int, int]
"""Token rows and columns, ``(h, w)``; tokens are row-major."""


@dataclass(frozen=True)
class Tail:
    """The part of a tower behind the last block's input, on one grid.

    Attributes:
        prefix: Number of tokens before the patches.
        normalise: First LayerNorm of the last block, ``(..., T, D)`` to the same shape.
        output: Maps block input and its normalised form, both ``(B, P + N, D)``, to the block's output of the same shape. They
            are separate so that a gradient can be taken with respect to the second.
        value_tokens: Maps the normalised input ``(..., N, D)`` to values behind the attention's output projection, same shape.
        project: Maps tokens ``(..., N, D)`` into the joint space, ``(..., N, E)``, not L2-normalised.
        shifted: ``output`` of an activation whose patches are moved by a third argument, a shift ``(B, D)`` that is 0; its
            gradient by the shift takes less time than that of ``output``. None if the tower has no such function.
        lowered: Whether matrix products run in half precision (`lowered`).
    """

    prefix: int
    normalise: Callable[[Tensor], Tensor]
    output: Callable[[Tensor, Tensor], Tensor]
    value_tokens: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    shifted: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    lowered: bool = False

    def patches(self, tokens_cls: Tensor) -> Tensor:
        """Drop the prefix: ``(..., P + N, D)`` to ``(..., N, D)``."""
        return tokens_cls[..., self.prefix :, :]

    def features(self, tokens_cls: Tensor, activation: Tensor, shift: Tensor | None = None) -> Tensor:
        """Compute the projected patches of the block's output.

        Args:
            tokens_cls: Block input ``(B, P + N, D)``.
            activation: ``normalise(tokens_cls)``.
            shift: ``(B, D)`` of zeros, added to the activation of all patches, so that a gradient by it can be taken.

        Returns:
            ``(B, N, E)``, not L2-normalised.
        """
        if shift is not None and self.shifted is not None:
            output = self.shifted(tokens_cls, activation, shift)  # (B, P + N, D)
        else:
            output = self.output(tokens_cls, self._moved(activation, shift))
        return self.project(self.patches(output))  # (B, N, E)

    def value_features(self, tokens_cls: Tensor, activation: Tensor, shift: Tensor | None = None) -> Tensor:
        """Compute the projected patches of the value path alone: no attention, no residual, no MLP.

        Args:
            tokens_cls: Not used; it is here for the signature of `features`.
            activation: ``normalise(tokens_cls)``, ``(B, P + N, D)``.
            shift: As for `features`.

        Returns:
            ``(B, N, E)``, not L2-normalised.
        """
        return self.project(self.value_tokens(self.patches(self._moved(activation, shift))))  # (B, N, E)

    def _moved(self, activation: Tensor, shift: Tensor | None) -> Tensor:
        if shift is None:
            return activation
        moved = self.patches(activation) + shift.unsqueeze(1)  # (B, N, D)
        return torch.cat([activation[:, : self.prefix], moved], dim=1)  # (B, P + N, D)


def lowered(tail: Tail, dtype: torch.dtype) -> Tail:
    """Return a tail whose matrix products run in half precision; LayerNorms, residual sums and results stay in fp32.

    Args:
        tail: Tail in fp32.
        dtype: Precision of the products; fp32 leaves the tail unchanged.
    """
    if dtype == torch.float32:
        return tail

    def low(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*tensors: Tensor) -> Tensor:
            with torch.autocast(tensors[0].device.type, dtype):
                return call(*tensors).float()

        return run

    return replace(
        tail,
        output=low(tail.output),
        value_tokens=low(tail.value_tokens),
        project=low(tail.project),
        shifted=None if tail.shifted is None else low(tail.shifted),
        lowered=True,
    )


class VisionTower(Protocol):
    """A vision transformer of some library.

    Attributes:
        width: Width D of a token.
        patch_size: Side of a square patch in pixels.
        prefix: Number P of tokens before the patches: CLS, registers, or none.
    """

    width: int
    patch_size: int
    prefix: int

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, first to last."""

    def embed(self, images: Tensor) -> Tensor:
        """Return the first block's input ``(B, P + N, D)`` of normalised RGB ``(B, 3, H, W)``, sides multiples of the patch."""

    def block(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Compute the output of a block, ``(B, P + N, D)``, the shape of its input."""

    def attention(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Compute a block's head-averaged attention, ``(B, P + N, P + N)`` fp32; row = receiver, every row sums to 1."""

    def block_with_attention(self, index: int, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Compute `block` and `attention` of one input."""

    def opened(self, index: int, grid: Grid) -> OpenAttention:
        """Return the parts of a block's attention, with the block's LayerNorm and the positions in queries and keys."""

    def tail(self, grid: Grid) -> Tail:
        """Return the part of the model behind the last block's input."""

    def lower(self, dtype: torch.dtype) -> None:
        """Convert all layers before the last block to this precision; the last block and later layers stay unchanged."""


@dataclass(frozen=True)
class Walked:
    """The result of one pass.

    Attributes:
        tokens_cls: Tokens that enter the last block, ``(B, P + N, D)``, in the last block's precision.
        grid: ``(h, w)`` with ``h * w == N``.
        attention: Mean over the requested blocks of the attention between patches, ``(B, N, N)`` fp32, or None.
        block_tokens: Output of the first L blocks, patches only, ``(L, B, N, D)``, or None if L is 0.
        block_attention: Attention of each block of ``each_block``, ``(A, B, N, N)`` fp32, or None.
        inputs: Input of every block, ``(B, P + N, D)`` each in its block's precision; empty if they were not requested.
    """

    tokens_cls: Tensor
    grid: Grid
    attention: Tensor | None
    block_tokens: Tensor | None
    block_attention: Tensor | None
    inputs: tuple[Tensor, ...] = ()


def walk(
    tower: VisionTower,
    images: Tensor,
    attention_blocks: Collection[int] = (),
    token_blocks: int = 0,
    each_block: Collection[int] = (),
    inputs: bool = False,
) -> Walked:
    """Run all blocks but the last; the last runs too if its tokens are requested.

    Args:
        tower: The tower.
        images: Normalised RGB, ``(B, 3, H, W)``, on the tower's device and in its precision.
        attention_blocks: Blocks whose attention is averaged; 0 is the first, ``len(blocks) - 1`` the last. For the last block
            only its attention is computed.
        token_blocks: Number of blocks, from the first, whose output is kept.
        each_block: Blocks whose attention is kept apart.
        inputs: Whether to keep the input of each block.

    Raises:
        ValueError: A block number is out of range.
    """
    depth, prefix = len(tower.blocks), tower.prefix
    averaged, apart = checked_blocks(attention_blocks, depth), checked_blocks(each_block, depth)
    if not 0 <= token_blocks <= depth:
        raise ValueError(f"token_blocks {token_blocks}: expected 0 to {depth}")
    grid = (images.shape[-2] // tower.patch_size, images.shape[-1] // tower.patch_size)
    total: Tensor | None = None
    tokens: list[Tensor] = []
    attentions: list[Tensor] = []
    entering: list[Tensor] = []

    def note(index: int, weights: Tensor) -> None:
        nonlocal total
        weights = weights[:, prefix:, prefix:]  # (B, N, N)
        if index in averaged:
            total = weights.clone() if total is None else total.add_(weights)
        if index in apart:
            attentions.append(weights)

    x = tower.embed(images)  # (B, P + N, D)
    last = depth - 1
    for index in range(last):
        entering += [x] if inputs else []
        if index in averaged | apart:
            x, weights = tower.block_with_attention(index, x, grid)
            note(index, weights)
        else:
            x = tower.block(index, x, grid)
        if index < token_blocks:
            tokens.append(x[:, prefix:])
    tokens_cls = x.to(next(tower.blocks[last].parameters()).dtype)
    if last in averaged | apart:
        note(last, tower.attention(last, tokens_cls, grid))
    if token_blocks == depth:
        tokens.append(tower.block(last, tokens_cls, grid)[:, prefix:].to(x.dtype))
    return Walked(
        tokens_cls,
        grid,
        None if total is None else total / len(averaged),
        torch.stack(tokens) if tokens else None,
        torch.stack(attentions) if attentions else None,
        (*entering, tokens_cls) if inputs else (),
    )


def checked_blocks(wanted: Collection[int], count: int) -> frozenset[int]:
    """Return the wanted block numbers without repetition.

    Raises:
        ValueError: One of them is not in ``range(count)``.
    """
    blocks = frozenset(wanted)
    if not blocks <= set(range(count)):
        raise ValueError(f"attention_blocks {sorted(blocks)}: expected numbers from 0 to {count - 1}")
    return blocks
