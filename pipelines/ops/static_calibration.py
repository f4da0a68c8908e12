"""ExCEL's read-out (Yang et al., CVPR 2025): patches attend to similar patches, and names lose what they have in common.

The last blocks get a second path beside the model's own. In it, queries are compared with queries, keys with keys and values
with values, and there is no MLP; so a patch gathers from its own object, not from the few tokens that collect the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.attention import OpenAttention


def self_correlation(parts: Sequence[Tensor]) -> Tensor:
    """Return the mean over parts of ``softmax(X X^T / sqrt(d))``, summed over heads.

    Args:
        parts: Queries, keys and values, ``(B, heads, T, d)`` each.

    Returns:
        ``(B, T, T)``; rows sum to the number of heads. Memory holds the map of one head at a time.
    """
    total: Tensor | None = None
    for part in parts:
        for one in part.unbind(dim=1):  # (B, T, d)
            weights = (one @ one.transpose(1, 2) / one.shape[-1] ** 0.5).softmax(dim=-1)  # (B, T, T)
            total = weights if total is None else total.add_(weights)
    if total is None:
        raise ValueError("expected at least one part")
    return total / len(parts)


def calibrated_tokens(inputs: Sequence[Tensor], attentions: Sequence[OpenAttention]) -> Tensor:
    """Compute the tokens at the end of the second path.

    Args:
        inputs: Inputs of the last blocks on the model's own path, ``(B, T, D)`` each.
        attentions: Parts of the attention of these blocks.

    Returns:
        ``(B, T, D)`` fp32.
    """
    x = inputs[0].float()  # (B, T, D)
    for own, attention in zip(inputs, attentions, strict=True):
        parts = attention.projected(own)
        x = x + attention.joined(self_correlation(parts).unsqueeze(1) @ parts[2])  # all heads use one map
    return x


def distinct_names(pooled: Tensor, text: Tensor) -> Tensor:
    """Return names without their common part, weighted by the similarity of each to the whole image (CLIP Surgery).

    Patches ``v`` are compared with class c by ``sum_d (v_d T_cd w_c - mean_c' v_d T_c'd w_c')``. That is linear in the patch,
    so the names are changed instead, once for each image.

    Args:
        pooled: The image's token ``(B, E)``.
        text: ``(M, E)``, L2-normalised.

    Returns:
        ``(B, M, E)``.
    """
    likely = (2 * pooled @ text.T).softmax(dim=-1)  # (B, M)
    weighed = (likely / likely.mean(dim=-1, keepdim=True)).unsqueeze(2) * text  # (B, M, E)
    return weighed - weighed.mean(dim=1, keepdim=True)


def normalised_over_tokens(features: Tensor) -> Tensor:
    """Divide each channel by its norm over the tokens ``(B, T, E)``, as the authors' code does."""
    return F.normalize(features, dim=1)
