"""Read-outs, which turn CLIP's tokens into one map per class of each image. `READOUTS` is the table behind ``--readout``."""

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
from pipelines.ops.transfer import sent
from pipelines.options.stages import CamsOptions
from pipelines.plugins import Table

Readout = Callable[[Evidence, CamsOptions], Tensor]
"""Maps evidence and options to maps ``(T, N)``, which the composition scales to [0, 1]."""


def gradcam(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Compute softmax-GradCAM at the output of the last block's first LayerNorm (CLIP-ES, Eq. 3-5), ``(T, N)``."""
    text, tail = evidence.text, evidence.tail
    present, targets = softmax_entries(evidence.labels, text.classes, len(text.all))
    logits = cosine_logits(text.all, text.logit_scale)
    asked = evidence.asked if "asked" in evidence else None
    if asked is not None:
        targets[targets.clone()] = asked  # both are ordered by image, then by ascending class
    maps = softmax_gradcam(
        evidence.tokens_cls, tail.normalise, tail.features, tail.patches, logits, present, targets, by_shift=tail.lowered
    )  # (T, N) of those asked for
    if asked is None:
        return maps
    places = sent(asked.nonzero(), maps.device).expand(-1, maps.shape[1])  # (asked, N)
    return maps.new_zeros(len(asked), maps.shape[1]).scatter(0, places, maps)


@torch.inference_mode()
def dense(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Compute class probabilities of each patch's value vector, averaged in superpixels (MaskCLIP, section 3.2), ``(T, N)``."""
    return _probabilities(_values(evidence, options), evidence, options)


@torch.no_grad()
def background_share(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Return the probability of the likeliest background word at each patch, read out densely, ``(B, N)``; 0 without words."""
    classes = max(evidence.counts)
    shares = _word_probabilities(_values(evidence, options), evidence, options)[:, classes:]  # (B, M, N)
    return shares.amax(dim=1) if shares.shape[1] else shares.sum(dim=1)


def _values(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Return the value vectors of the patches in CLIP's joint space, ``(B, N, E)`` L2-normalised."""
    tail = evidence.tail
    return _joint(tail.value_tokens(tail.normalise(tail.patches(evidence.tokens_cls))), evidence, options)


def _joint(tokens: Tensor, evidence: Evidence, options: CamsOptions) -> Tensor:
    """Smooth tokens ``(B, N, D)`` over superpixels and project them into CLIP's joint space, ``(B, N, E)`` L2-normalised."""
    if options.superpixel_share:
        tokens = smooth_over_superpixels(tokens, evidence.superpixels, options.superpixel_share)
    return F.normalize(evidence.tail.project(tokens), dim=-1)


def _word_probabilities(features: Tensor, evidence: Evidence, options: CamsOptions) -> Tensor:
    """Return the softmax of features ``(B, N, E)`` over each image's classes and all background words, ``(B, K + M, N)``."""
    words, absent = evidence.text.of(evidence.classes(features.device))  # (B, K + M, E), (B, K + M)
    return text_probabilities(features, words, words.shape[1], options.dense_scale, absent)


def _probabilities(features: Tensor, evidence: Evidence, options: CamsOptions) -> Tensor:
    """Return the classes' rows of `_word_probabilities`, ``(T, N)``."""
    return evidence.flat(_word_probabilities(features, evidence, options)[:, : max(evidence.counts)])


def mixed(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Mix the dense map and GradCAM with ``dense_weight``, ``(T, N)``."""
    weight = options.dense_weight
    return mix([(weight, dense(evidence, options)), (1 - weight, gradcam(evidence, options))])


@torch.no_grad()
def calibrated(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Mix the dense map with the class probabilities of the patches behind ExCEL's second path, ``(T, N)``."""
    patches = evidence.tail.patches(_second_path(evidence, options))  # (B, N, D)
    other = _probabilities(_joint(patches, evidence, options), evidence, options)  # (T, N)
    weight = options.dense_weight
    return mix([(weight, dense(evidence, options)), (1 - weight, other)])


def _second_path(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Return the tokens at the end of ExCEL's second path through the last ``excel_blocks`` blocks, ``(B, P + N, D)``."""
    last = slice(-options.excel_blocks, None)
    return static_calibration.calibrated_tokens(evidence.clip_inputs[last], evidence.clip_opened[last])


@torch.no_grad()
def excel(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Compute ExCEL's map: its second path compares queries with queries, keys with keys, values with values, ``(T, N)``."""
    tail, tokens = evidence.tail, _second_path(evidence, options)  # (B, P + N, D)
    own = tail.output(evidence.tokens_cls, tail.normalise(evidence.tokens_cls))[:, : tail.prefix]  # (B, P, D)
    features = tail.project(torch.cat([own, tail.patches(tokens)], dim=1))  # (B, P + N, E)
    features = static_calibration.normalised_over_tokens(features)
    pooled = features[:, 0] if tail.prefix else features.mean(dim=1)  # (B, E)
    names = static_calibration.distinct_names(pooled, evidence.text.all)  # (B, C + M, E)
    index = evidence.classes(names.device).clamp_min(0).unsqueeze(2).expand(-1, -1, names.shape[2])  # (B, K, E)
    return evidence.flat(names.gather(1, index) @ tail.patches(features).transpose(1, 2))


@torch.no_grad()
def resclip(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Compute class probabilities of patches with ResCLIP's attention in the last block, ``(T, N)``."""
    tail, opened = evidence.tail, evidence.clip_opened
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

    found = features(near, 1.0)
    if options.resclip_feedback:
        feedback, factor = options.resclip_feedback, 2.2
        words, absent = evidence.text.of(evidence.classes(found.device))  # (B, K + M, E), (B, K + M)
        cosines = (found @ words.transpose(1, 2)).masked_fill(absent.unsqueeze(1), float("-inf"))  # (B, N, K + M)
        regions = cosines.argmax(dim=2).clamp(max=max(evidence.counts))  # (B, N): background words are one region
        alike = torch.stack([residual_attention.semantic_feedback(own, evidence.grid) for own in regions]).unsqueeze(1)
        found = features(near + factor * feedback * alike, factor * (1 - feedback))
    return _probabilities(found, evidence, options)


def dense_needs(options: CamsOptions) -> Needs:
    """Return the needs of the dense read-out; superpixels are among them only where they have a share."""
    needs: Needs = frozenset({"tokens_cls", "text"})
    return needs | {"superpixels"} if options.superpixel_share else needs


def _calibrated_needs(options: CamsOptions) -> Needs:
    return dense_needs(options) | {"clip_inputs"}


READOUTS: Table[Part[Readout, CamsOptions]] = Table(
    "read-out",
    Part,
    {
        "gradcam": Part(gradcam, always("tokens_cls", "text")),
        "dense": Part(dense, dense_needs, ("dense_scale", "superpixel_share")),
        "excel": Part(excel, always("tokens_cls", "clip_inputs", "text"), ("excel_blocks",)),
        "resclip": Part(
            resclip, always("tokens_cls", "clip_inputs", "text"), ("resclip_share", "resclip_feedback", "dense_scale")
        ),
        "mix": Part(mixed, dense_needs, ("dense_weight", "dense_scale", "superpixel_share")),
        "calibrated": Part(calibrated, _calibrated_needs, ("dense_weight", "dense_scale", "superpixel_share", "excel_blocks")),
    },
)
