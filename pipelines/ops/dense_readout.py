"""Dense read-out: class probabilities of every patch, from the value path of CLIP's last block.

CLIP's joint space is trained for the pooled token, but a patch's *value* vector, passed through the block's output projection
alone (no attention, no residual, no MLP), can be compared with text directly (MaskCLIP, Zhou et al., ECCV 2022, section 3.2).
Single patches are noisy; the mean of the values in each superpixel makes the map clean.
"""

from __future__ import annotations

from torch import Tensor


def smooth_over_superpixels(tokens: Tensor, membership: Tensor, share: float) -> Tensor:
    """Mix each token with the mean of its superpixels.

    Args:
        tokens: ``(..., N, D)``.
        membership: ``(..., S, N)``, columns sum to 1 (`pipelines.ops.superpixels.token_membership`); zero rows are padding.
        share: Share of the superpixels' mean in [0, 1].

    Returns:
        ``(..., N, D)``.
    """
    means = membership @ tokens / membership.sum(dim=-1, keepdim=True).clamp_min(1e-6)  # (..., S, D)
    return (1 - share) * tokens + share * (membership.transpose(-2, -1) @ means)


def text_probabilities(features: Tensor, text: Tensor, targets: int, scale: float, absent: Tensor | None = None) -> Tensor:
    """Return the softmax over scaled cosines to text.

    Args:
        features: ``(..., N, E)``, L2-normalised.
        text: ``(..., M, E)`` L2-normalised: the image's classes first, then the background words.
        targets: Number of classes at the head of ``text``.
        scale: Factor of the cosines.
        absent: ``(..., M)`` bool: rows of ``text`` that are padding and take no part; None = no padding.

    Returns:
        ``(..., targets, N)`` in [0, 1], 0 for a padded class.
    """
    logits = scale * features @ text.transpose(-2, -1)  # (..., N, M)
    if absent is not None:
        logits = logits.masked_fill(absent.unsqueeze(-2), float("-inf"))
    return logits.softmax(dim=-1)[..., :targets].transpose(-2, -1)  # (..., targets, N)
