"""GradCAM through alignment heads, with the gradient taken at the patch features that the heads read.

SSR takes the gradient at ``ln_1`` of the last block, as CLIP-ES does. This fails once heads are trained: the block's output is
its input plus what attention and MLP add, the heads find most of the class in the *input* part, and a gradient at ``ln_1`` does
not reach that part. A gradient at the output itself covers both parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def head_gradcam(
    tokens: Tensor, project: Callable[[Tensor], Tensor], text: Tensor, targets: int, temperature: float, relu: bool = False
) -> Tensor:
    """Compute the map of each class c, ``sum_k alpha_ck F_k`` with ``alpha_c`` the mean gradient over patches of c's log-odds.

    ``p`` and its log-odds have gradients of one direction, but those of ``p`` vanish where the softmax is near 0 or 1.

    Args:
        tokens: Patch features F ``(N, E)`` fp32.
        project: The image head, ``(N, E) -> (N, E)``.
        text: Projected text ``(M, E)``, L2-normalised: the image's classes, then the background words.
        targets: Number of classes at the head of ``text``.
        temperature: Temperature of the softmax.
        relu: Whether to set the negative part to 0, as GradCAM does. Patch features share a large common part that shifts a
            whole map, so that the cut is arbitrary; without it, min-max scaling finds the floor.

    Returns:
        ``(targets, N)``, not normalised.
    """
    if targets == 0:  # an image without classes, in a batch with others
        return tokens.new_zeros(0, len(tokens))
    with torch.inference_mode(False), torch.enable_grad():
        leaf = tokens.detach().clone().requires_grad_()  # (N, E)
        pooled = F.normalize(project(leaf).mean(dim=0), dim=0)  # (E,)
        logits = text.detach().clone() @ pooled / temperature  # (M,)
        others = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)[:targets]  # (K, M)
        rest = torch.logsumexp(logits.expand(targets, -1).masked_fill(~others, float("-inf")), dim=1)  # (K,)
        odds = logits[:targets] - rest
        (gradient,) = torch.autograd.grad(
            odds, leaf, torch.eye(targets, device=odds.device), is_grads_batched=True
        )  # (K, N, E)
    maps = gradient.mean(dim=1) @ tokens.T  # (K, N)
    return maps.relu() if relu else maps
