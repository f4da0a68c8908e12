"""Softmax-GradCAM at ``ln_1`` of the last CLIP block, for all classes of all images at once.

The map of class c is ``ReLU(sum_k alpha_ck A_k)`` with A the output of ``ln_1`` of the last block, ``alpha_c`` the mean over
patches of ``d p_c / d A`` and ``p`` the softmax over [present classes ; background words] (CLIP-ES, Lin et al., CVPR 2023,
Eq. 3-5). Behind A lie one attention, one MLP, the mean over the patch tokens (CLS is not pooled) and a projection.

One forward of the last block serves all classes of all images; one batched backward serves all (image, class) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Logits = Callable[[Tensor], Tensor]
"""Pooled, projected image features ``(B, E)`` -> logits ``(B, M)``. Alignment heads plug in here."""


class ResidualBlock(Protocol):
    """A pre-norm transformer block, as open_clip builds it."""

    attn: nn.MultiheadAttention
    ln_1: Callable[[Tensor], Tensor]
    ls_1: Callable[[Tensor], Tensor]
    ln_2: Callable[[Tensor], Tensor]
    ls_2: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LastBlock:
    """What stands behind the last block's input.

    Attributes:
        block: The last block.
        ln_post: The tower's closing LayerNorm.
        projection: ``(D, E)`` into the joint space.
    """

    block: ResidualBlock
    ln_post: Callable[[Tensor], Tensor]
    projection: Tensor

    def features(self, tokens_cls: Tensor, activation: Tensor) -> Tensor:
        """Projected patch tokens, from the block's input and its ``ln_1`` output.

        Args:
            tokens_cls: Block input ``(B, N + 1, D)``, CLS first.
            activation: ``block.ln_1(tokens_cls)``, separate so that a gradient can be taken with respect to it.

        Returns:
            ``(B, N, E)``, not normalised.
        """
        attn = self.block.attn
        batch, count, width = activation.shape
        split = (batch, count, attn.num_heads, width // attn.num_heads)
        projected = F.linear(activation, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
        query, key, value = (part.view(split).transpose(1, 2) for part in projected)  # (B, heads, N + 1, D / heads)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, count, width)
        x = tokens_cls + self.block.ls_1(attn.out_proj(attended))  # (B, N + 1, D)
        x = x + self.block.ls_2(self.block.mlp(self.block.ln_2(x)))  # (B, N + 1, D)
        return self.ln_post(x[:, 1:]) @ self.projection  # (B, N, E)

    def value_features(self, tokens_cls: Tensor, activation: Tensor) -> Tensor:
        """Like `features`, but the value path alone: no attention, no residual, no MLP.

        Args:
            tokens_cls: Not used; stands where `features` has it.
            activation: ``block.ln_1(tokens_cls)``, ``(B, N + 1, D)``.

        Returns:
            ``(B, N, E)``, not normalised.
        """
        return self.ln_post(self.value_tokens(activation[:, 1:])) @ self.projection  # (B, N, E)

    def value_tokens(self, activation: Tensor) -> Tensor:
        """Values of ``ln_1``'s output behind the attention's output projection, ``(..., N, D)`` of ``(..., N, D)``."""
        attn = self.block.attn
        width = activation.shape[-1]
        value = F.linear(activation, attn.in_proj_weight[2 * width :], attn.in_proj_bias[2 * width :])  # (..., N, D)
        projected: Tensor = attn.out_proj(value)
        return projected


def cosine_logits(text: Tensor, logit_scale: float) -> Logits:
    """CLIP's own logits: scaled cosine to each text embedding.

    Args:
        text: ``(M, E)``, L2-normalised.
        logit_scale: About 100 for released models.
    """
    return lambda features: logit_scale * F.normalize(features, dim=-1) @ text.T  # (B, M)


Features = Callable[[Tensor, Tensor], Tensor]
"""Block input and ``ln_1`` output, both ``(B, N + 1, D)`` -> patch features ``(B, N, E)``."""


def softmax_gradcam(
    tokens_cls: Tensor,
    last_block: LastBlock,
    logits: Logits,
    present: Tensor,
    targets: Tensor | None = None,
    features: Features | None = None,
    relu: bool = True,
) -> Tensor:
    """GradCAM of softmax probabilities for every present class.

    Args:
        tokens_cls: Input of the last block, ``(B, N + 1, D)`` fp32, CLS first.
        last_block: The modules behind it.
        logits: From pooled image features to ``(B, M)`` logits.
        present: ``(B, M)`` bool: the entries that take part in each image's softmax (its classes and all background words).
        targets: ``(B, M)`` bool, a part of ``present``: the entries whose maps are wanted. All present ones by default.
        features: What is pooled; the output of the last block by default.
        relu: Cut the negative part of the maps off, as the papers do.

    Returns:
        ``(T, N)`` fp32, not normalised: image by image, targets in ascending order of their column.
    """
    targets = present if targets is None else targets
    counts = targets.sum(dim=1)  # (B,)
    slots = int(counts.max()) if counts.numel() else 0
    if slots == 0:
        return tokens_cls.new_zeros(0, tokens_cls.shape[1] - 1)
    with torch.inference_mode(False), torch.enable_grad():
        tokens_cls = tokens_cls.detach().clone()  # tokens made under inference mode may not enter autograd
        activation = last_block.block.ln_1(tokens_cls).detach().requires_grad_()  # (B, N + 1, D)
        pooled = (features or last_block.features)(tokens_cls, activation).mean(dim=1)  # (B, E)
        scores = logits(pooled).masked_fill(~present, float("-inf"))  # (B, M)
        probabilities = scores.softmax(dim=-1)  # (B, M)
        # Slot s asks for the s-th target of every image: the number of backward passes in the batch is the largest count.
        rank = targets.cumsum(dim=1) - 1  # (B, M)
        wanted = targets & (rank == torch.arange(slots, device=rank.device).view(-1, 1, 1))  # (S, B, M)
        (gradient,) = torch.autograd.grad(
            probabilities, activation, wanted.to(probabilities.dtype), is_grads_batched=True
        )  # (S, B, N + 1, D)
    alpha = gradient[:, :, 1:].mean(dim=2)  # (S, B, D)
    maps = torch.einsum("sbd,bnd->bsn", alpha, activation.detach()[:, 1:])  # (B, S, N)
    filled = torch.arange(slots, device=counts.device) < counts.unsqueeze(1)  # (B, S)
    return maps[filled].relu() if relu else maps[filled]


def softmax_entries(labels: Sequence[tuple[int, ...]], classes: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which text embeddings take part in each image's softmax, and whose maps are wanted.

    Args:
        labels: Class indices of each image.
        classes: Number of classes C; the other embeddings are background words.
        count: Number of embeddings C + M.
        device: Of the result.

    Returns:
        ``present`` and ``targets`` of `softmax_gradcam`, ``(B, C + M)`` bool.
    """
    targets = torch.zeros(len(labels), count, dtype=torch.bool)
    for row, own in zip(targets, labels, strict=True):
        row[list(own)] = True
    present = targets.clone()
    present[:, classes:] = True
    return present.to(device), targets.to(device)


def min_max(maps: Tensor, epsilon: float = 1e-14) -> Tensor:
    """Scale each map to [0, 1]: ``(M - min) / (max - min)``.

    CLIP-ES adds 1e-7 to the denominator and does it twice, which cancels: the maximum is 1 however small the map was.

    Args:
        maps: ``(..., N)``.
        epsilon: Keeps an all-equal map at zero.

    Returns:
        Same shape and dtype.
    """
    shifted = maps - maps.amin(dim=-1, keepdim=True)
    return shifted / shifted.amax(dim=-1, keepdim=True).clamp_min(epsilon)
