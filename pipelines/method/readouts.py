"""Read-outs: from CLIP's tokens to one map for each class of each image. `READOUTS` is the table behind ``--readout``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.method.evidence import Evidence, Needs, Part, always
from pipelines.ops.dense_readout import smooth_over_superpixels, text_probabilities
from pipelines.ops.gradcam import cosine_logits, softmax_entries, softmax_gradcam
from pipelines.ops.mix import mix
from pipelines.options.stages import CamsOptions

Readout = Callable[[Evidence, CamsOptions], Tensor]
"""Evidence and options -> maps ``(T, N)``; the composition scales them to [0, 1]."""


def gradcam(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Softmax-GradCAM at the output of the last block's first LayerNorm (CLIP-ES, Eq. 3-5), ``(T, N)``."""
    text, tail = evidence.text, evidence.tail
    present, targets = softmax_entries(evidence.labels, text.classes, len(text.all), evidence.tokens_cls.device)
    logits = cosine_logits(text.all, text.logit_scale)
    return softmax_gradcam(evidence.tokens_cls, tail.normalise, tail.features, tail.patches, logits, present, targets)


@torch.inference_mode()
def dense(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Class probabilities of each patch's value vector, averaged inside superpixels (MaskCLIP, section 3.2), ``(T, N)``."""
    tail = evidence.tail
    values = tail.value_tokens(tail.normalise(tail.patches(evidence.tokens_cls)))  # (B, N, D)
    maps: list[Tensor] = []
    for index, labels in enumerate(evidence.labels):
        value = values[index]  # (N, D)
        if options.superpixel_share:
            value = smooth_over_superpixels(value, evidence.superpixels[index], options.superpixel_share)
        features = F.normalize(tail.project(value), dim=-1)  # (N, E)
        maps.append(text_probabilities(features, evidence.text.of(labels), len(labels), options.dense_scale))
    return torch.cat(maps)


def mixed(evidence: Evidence, options: CamsOptions) -> Tensor:
    """The dense map and GradCAM by ``dense_weight``, ``(T, N)``."""
    weight = options.dense_weight
    return mix([(weight, dense(evidence, options)), (1 - weight, gradcam(evidence, options))])


def dense_needs(options: CamsOptions) -> Needs:
    """Superpixels are needed only where they have a share."""
    needs: Needs = frozenset({"tokens_cls", "text"})
    return needs | {"superpixels"} if options.superpixel_share else needs


READOUTS: dict[str, Part[Readout, CamsOptions]] = {
    "gradcam": Part(gradcam, always("tokens_cls", "text")),
    "dense": Part(dense, dense_needs, ("dense_scale", "superpixel_share")),
    "mix": Part(mixed, dense_needs, ("dense_weight", "dense_scale", "superpixel_share")),
}
