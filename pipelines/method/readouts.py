"""Read-outs: from CLIP's tokens to one map for each class of each image. `READOUTS` is the table behind ``--readout``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.method.evidence import Evidence, Needs, Part, always
from pipelines.ops import residual_attention, static_calibration
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
    return softmax_gradcam(
        evidence.tokens_cls, tail.normalise, tail.features, tail.patches, logits, present, targets, by_shift=tail.lowered
    )


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


@torch.no_grad()
def excel(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Patches on ExCEL's second path, which compares queries with queries, keys with keys, values with values, ``(T, N)``."""
    tail, last = evidence.tail, slice(-options.excel_blocks, None)
    tokens = static_calibration.calibrated_tokens(evidence.clip_inputs[last], evidence.clip_opened[last])  # (B, P + N, D)
    own = tail.output(evidence.tokens_cls, tail.normalise(evidence.tokens_cls))[:, : tail.prefix]  # (B, P, D)
    features = tail.project(torch.cat([own, tail.patches(tokens)], dim=1))  # (B, P + N, E)
    features = static_calibration.normalised_over_tokens(features)
    pooled = features[:, 0] if tail.prefix else features.mean(dim=1)  # (B, E)
    names = static_calibration.distinct_names(pooled, evidence.text.all)  # (B, C + M, E)
    images = zip(evidence.labels, names, tail.patches(features), strict=True)
    return torch.cat([of_image[list(labels)] @ patches.T for labels, of_image, patches in images])


@torch.no_grad()
def resclip(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Class probabilities of patches behind ResCLIP's attention in the last block, ``(T, N)``."""
    tail, opened, text = evidence.tail, evidence.clip_opened, evidence.text
    _, key, value = opened[-1].projected(evidence.tokens_cls)  # (B, heads, P + N, d) each
    depth, share = len(opened), options.resclip_share
    middle = range(round(depth * 5 / 12), round(depth * 9 / 12))  # blocks 6 to 9 of 12
    attended = [opened[index].projected(evidence.clip_inputs[index])[:2] for index in middle]
    residual = share * residual_attention.cross_correlation(attended, value)  # (B, heads, P + N, d)
    near = residual_attention.neighbourhood(evidence.grid).to(value)  # (N, N)

    def features(bias: Tensor, factor: float) -> Tensor:
        bias = residual_attention.with_prefix(bias, tail.prefix)
        own = (1 - share) * residual_attention.gathered(key, value, bias, factor)  # (B, heads, P + N, d)
        return F.normalize(tail.project(tail.patches(opened[-1].joined(2 * (own + residual)))), dim=-1)  # (B, N, E)

    names = [text.of(labels) for labels in evidence.labels]
    found = features(near, 1.0)
    if options.resclip_feedback:
        feedback, factor = options.resclip_feedback, 2.2
        first = [(of_image @ rows.T).argmax(dim=1) for of_image, rows in zip(found, names, strict=True)]  # (N,) each
        regions = [own.clamp(max=len(labels)) for own, labels in zip(first, evidence.labels, strict=True)]  # one background
        alike = torch.stack([residual_attention.semantic_feedback(own, evidence.grid) for own in regions]).unsqueeze(1)
        found = features(near + factor * feedback * alike, factor * (1 - feedback))
    images = zip(found, names, evidence.counts, strict=True)
    return torch.cat([text_probabilities(of_image, rows, count, options.dense_scale) for of_image, rows, count in images])


def dense_needs(options: CamsOptions) -> Needs:
    """Superpixels are needed only where they have a share."""
    needs: Needs = frozenset({"tokens_cls", "text"})
    return needs | {"superpixels"} if options.superpixel_share else needs


READOUTS: dict[str, Part[Readout, CamsOptions]] = {
    "gradcam": Part(gradcam, always("tokens_cls", "text")),
    "dense": Part(dense, dense_needs, ("dense_scale", "superpixel_share")),
    "excel": Part(excel, always("tokens_cls", "clip_inputs", "text"), ("excel_blocks",)),
    "resclip": Part(resclip, always("tokens_cls", "clip_inputs", "text"), ("resclip_share", "resclip_feedback", "dense_scale")),
    "mix": Part(mixed, dense_needs, ("dense_weight", "dense_scale", "superpixel_share")),
}
