"""Read-outs through alignment heads (CMPA). `ALIGNED_READOUTS` is the table behind ``--aligned-readout``."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.encoders.tower import Tail
from pipelines.method.evidence import Evidence, Needs, Part, TextFeatures
from pipelines.method.readouts import Readout
from pipelines.models.alignment_file import Alignment
from pipelines.ops.dense_readout import smooth_over_superpixels, text_probabilities
from pipelines.ops.gradcam import Features, softmax_entries, softmax_gradcam
from pipelines.ops.head_gradcam import head_gradcam
from pipelines.ops.mix import mix
from pipelines.options.stages import CamsOptions
from pipelines.plugins import Table


class AlignedText:
    """Alignment heads on the device, and the text embeddings projected by them.

    Args:
        alignment: Trained heads.
        text: Class and background embeddings; its device is that of the heads.
        options: ``aligned_scale``, ``few_photos`` and ``min_average_precision``.

    Attributes:
        text: The projected embeddings; ``logit_scale`` is the scale of the projected cosines.
        class_weight: ``(C,)`` in [0, 1], on the host: weight of the aligned CAM; ``n / (n + few_photos)`` for a class with n
            training images, 0 for a class whose training images the heads do not rank first.
    """

    def __init__(self, alignment: Alignment, text: TextFeatures, options: CamsOptions) -> None:
        self.heads = alignment.heads.to(text.all.device)
        self.features = alignment.features
        self._plain, self._scale = text, options.aligned_scale
        self.project_text()
        photos = alignment.class_photos.float()
        weight = photos / (photos + options.few_photos).clamp_min(1e-9)  # (C,)
        if options.few_photos == 0:
            weight = torch.ones_like(weight)
        self.class_weight = weight * (alignment.average_precision >= options.min_average_precision)

    @torch.no_grad()
    def project_text(self) -> None:
        """Project the text again, which is necessary after each change of the heads."""
        projected = F.normalize(self.heads.tsa(self._plain.all), dim=1)  # (C + M, E)
        scale, supers = self._scale or 1 / self.heads.temperature.item(), self._plain.supers
        supers = None if supers is None else F.normalize(self.heads.tsa(supers), dim=1)  # (S, E)
        self.text = replace(self._plain, all=projected, logit_scale=scale, supers=supers)

    def logits(self, features: Tensor) -> Tensor:
        """Return logits ``(B, C + M)`` of pooled patch features ``(B, E)``, both projected by the heads."""
        return self.text.logit_scale * F.normalize(self.heads.isa(features), dim=-1) @ self.text.all.T

    def weight(self, labels: tuple[tuple[int, ...], ...]) -> Tensor:
        """Return `class_weight` for all (image, class) pairs, ``(T,)``, on the host."""
        return self.class_weight[[label for of_image in labels for label in of_image]]


@torch.no_grad()
def head_features(tokens_cls: Tensor, tail: Tail, features: str) -> Tensor:
    """Return the patch features that enter the image head.

    Args:
        tokens_cls: Input of the last block ``(B, N + 1, D)``.
        tail: The modules after that input.
        features: ``output`` of the last block, or its ``value`` path alone.

    Returns:
        ``(B, N, E)``.
    """
    return _features_of(tail, features)(tokens_cls, tail.normalise(tokens_cls))


@torch.no_grad()
def dense(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Compute the class probabilities of each projected patch, ``(T, N)``."""
    alignment, text = evidence.alignment, evidence.alignment.text
    tokens = head_features(evidence.tokens_cls, evidence.tail, alignment.features)  # (B, N, E)
    projected = F.normalize(alignment.heads.isa(tokens), dim=-1)  # (B, N, E)
    features = F.normalize(_smoothed(projected, evidence, options), dim=-1)  # (B, N, E)
    words, absent = text.of(evidence.classes(text.all.device))  # (B, K + M, E), (B, K + M)
    return evidence.flat(text_probabilities(features, words, max(evidence.counts), text.logit_scale, absent))


def gradcam(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Compute GradCAM through the heads, with the gradient taken at ``aligned_layer``, ``(T, N)``."""
    alignment, text, relu = evidence.alignment, evidence.alignment.text, options.aligned_relu
    if options.aligned_layer == "ln_1":  # the layer of the SSR paper
        tail, tokens_cls = evidence.tail, evidence.tokens_cls
        present, targets = softmax_entries(evidence.labels, text.classes, len(text.all))
        features = _features_of(tail, alignment.features)
        return softmax_gradcam(
            tokens_cls, tail.normalise, features, tail.patches, alignment.logits, present, targets, relu, tail.lowered
        )
    tokens = head_features(evidence.tokens_cls, evidence.tail, alignment.features)  # (B, N, E)
    tokens, most = _smoothed(tokens, evidence, options), max(evidence.counts)  # (B, N, E)
    words, _ = text.of(evidence.classes(text.all.device))  # (B, K + M, E)
    maps = [
        head_gradcam(of_image, alignment.heads.isa, torch.cat([own[:count], own[most:]]), count, 1 / text.logit_scale, relu)
        for of_image, own, count in zip(tokens, words, evidence.counts, strict=True)
    ]
    return torch.cat(maps)


def mixed(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Mix the dense map and GradCAM with ``aligned_dense_weight``, ``(T, N)``."""
    weight = options.aligned_dense_weight
    return mix([(weight, dense(evidence, options)), (1 - weight, gradcam(evidence, options))])


def _features_of(tail: Tail, features: str) -> Features:
    return tail.value_features if features == "value" else tail.features


def _smoothed(features: Tensor, evidence: Evidence, options: CamsOptions) -> Tensor:
    share = options.aligned_superpixel_share
    return smooth_over_superpixels(features, evidence.superpixels, share) if share else features


def _needs(options: CamsOptions) -> Needs:
    needs: Needs = frozenset({"tokens_cls", "alignment"})
    return needs | {"superpixels"} if options.aligned_superpixel_share else needs


_OPTIONS = ("aligned_scale", "aligned_superpixel_share")
_GRADCAM_OPTIONS = (*_OPTIONS, "aligned_layer", "aligned_relu")

ALIGNED_READOUTS: Table[Part[Readout, CamsOptions]] = Table(
    "aligned read-out",
    Part,
    {
        "dense": Part(dense, _needs, _OPTIONS),
        "gradcam": Part(gradcam, _needs, _GRADCAM_OPTIONS),
        "mix": Part(mixed, _needs, (*_GRADCAM_OPTIONS, "aligned_dense_weight")),
    },
)
