"""Softmax-GradCAM at ``ln_1`` of the last CLIP block, for all classes of all images at once.

The map of class c is ``ReLU(sum_k alpha_ck A_k)`` with A the output of ``ln_1`` of the last block, ``alpha_c`` the mean over
patches of ``d p_c / d A`` and ``p`` the softmax over [present classes ; background words] (CLIP-ES, Lin et al., CVPR 2023,
Eq. 3-5). Behind A lie one attention, one MLP, the mean over the patch tokens (CLS is not pooled) and a projection.

One forward of the last block serves all classes of all images; one batched backward serves all (image, class) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.transfer import sent

Logits = Callable[[Tensor], Tensor]
"""Maps pooled, projected image features ``(B, E)`` to logits ``(B, M)``; alignment heads replace it."""


def cosine_logits(text: Tensor, logit_scale: float) -> Logits:
    """Return a function to CLIP's own logits: the scaled cosine to each text embedding.

    Args:
        text: ``(M, E)``, L2-normalised.
        logit_scale: About 100 for released models.
    """
    return lambda features: logit_scale * F.normalize(features, dim=-1) @ text.T  # (B, M)


Features = Callable[..., Tensor]
"""Maps block input and ``ln_1`` output, both ``(B, T, D)``, and maybe a shift ``(B, D)`` to patch features ``(B, N, E)``."""


def softmax_gradcam(  # noqa: PLR0913 - the last block as functions: ops have no encoder
    tokens_cls: Tensor,
    normalise: Callable[[Tensor], Tensor],
    features: Features,
    patches: Callable[[Tensor], Tensor],
    logits: Logits,
    present: Tensor,
    targets: Tensor | None = None,
    relu: bool = True,
    by_shift: bool = False,
) -> Tensor:
    """Compute the GradCAM of softmax probabilities for every present class.

    Args:
        tokens_cls: Input of the last block, ``(B, T, D)`` fp32, with the tokens that are not patches.
        normalise: The last block's first LayerNorm, ``ln_1``; the maps are read at its output.
        features: Maps the block's input and ``ln_1``'s output to the patch features that are pooled.
        patches: Drops the tokens that are not patches, ``(..., T, D)`` to ``(..., N, D)``.
        logits: Maps pooled image features to ``(B, M)`` logits.
        present: ``(B, M)`` bool, on the host: the entries that take part in each image's softmax (its classes and all
            background words).
        targets: ``(B, M)`` bool, on the host, a part of ``present``: the entries whose maps are computed; default: all present
            ones.
        relu: Whether to set the negative part of the maps to 0, as the papers do.
        by_shift: Whether to take the gradient by a shift of all patches, which is the same up to rounding and may take less
            time (`pipelines.ops.shifted_attention`).

    Returns:
        ``(T, N)`` fp32, not normalised: image by image, targets in ascending order of their column.
    """
    targets = present if targets is None else targets
    counts, device = targets.sum(dim=1), tokens_cls.device  # (B,), on the host, so that no copy waits for the device
    slots = int(counts.max()) if counts.numel() else 0
    if slots == 0:
        return tokens_cls.new_zeros(0, patches(tokens_cls).shape[1])
    with torch.inference_mode(False), torch.enable_grad():
        tokens_cls = tokens_cls.detach().clone()  # tokens of inference mode may not enter autograd
        activation = normalise(tokens_cls).detach()  # (B, T, D)
        if by_shift:
            leaf = activation.new_zeros(activation.shape[0], activation.shape[2]).requires_grad_()  # (B, D)
            pooled = features(tokens_cls, activation, leaf).mean(dim=1)  # (B, E)
        else:
            leaf = activation.requires_grad_()  # (B, T, D)
            pooled = features(tokens_cls, leaf).mean(dim=1)  # (B, E)
        scores = logits(pooled).masked_fill(~sent(present, device), float("-inf"))  # (B, M)
        probabilities = scores.softmax(dim=-1)  # (B, M)
        # Slot s holds the s-th target of every image: the number of backward passes in the batch is the largest count.
        rank = targets.cumsum(dim=1) - 1  # (B, M)
        wanted = sent(targets & (rank == torch.arange(slots).view(-1, 1, 1)), device)  # (S, B, M)
        (gradient,) = torch.autograd.grad(
            probabilities, leaf, wanted.to(probabilities.dtype), is_grads_batched=True
        )  # (S, B, T, D), by a shift (S, B, D)
    read = patches(activation.detach())  # (B, N, D)
    alpha = gradient / read.shape[1] if by_shift else patches(gradient).mean(dim=2)  # (S, B, D)
    maps = torch.einsum("sbd,bnd->bsn", alpha, read)  # (B, S, N)
    filled = (torch.arange(slots) < counts.unsqueeze(1)).flatten().nonzero().squeeze(1)  # (T,) places in (B, S)
    maps = maps.flatten(0, 1)[sent(filled, device)]  # (T, N)
    return maps.relu() if relu else maps


def softmax_entries(labels: Sequence[tuple[int, ...]], classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Return which text embeddings take part in each image's softmax, and whose maps are computed.

    Args:
        labels: Class indices of each image.
        classes: Number of classes C; the other embeddings are background words.
        count: Number of embeddings C + M.

    Returns:
        ``present`` and ``targets`` of `softmax_gradcam`, ``(B, C + M)`` bool, on the host.
    """
    targets = torch.zeros(len(labels), count, dtype=torch.bool)
    for row, own in zip(targets, labels, strict=True):
        row[list(own)] = True
    present = targets.clone()
    present[:, classes:] = True
    return present, targets
