"""Alignment heads as `ssr align` leaves them and `ssr cams --ckpt` reads them out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.encoders.class_embeddings import TextEmbeddings
from pipelines.encoders.tower import Tail
from pipelines.models.alignment_file import Alignment
from pipelines.ops.dense_readout import smooth_over_superpixels, text_probabilities
from pipelines.ops.gradcam import Logits, softmax_entries, softmax_gradcam
from pipelines.ops.head_gradcam import head_gradcam
from pipelines.ops.scaling import min_max
from pipelines.options.stages import CamsOptions


class AlignedReadout:
    """CAMs through alignment heads.

    Args:
        alignment: Trained heads.
        text: Class and background embeddings.
        options: ``aligned_*``, ``few_photos`` and ``min_average_precision``.
        device: Where the encoder runs.

    Attributes:
        trust: ``(C,)`` in [0, 1]: share of the aligned CAM; ``n / (n + few_photos)`` for a class with n training photos, 0 for
            one whose photos the heads do not find.
    """

    def __init__(self, alignment: Alignment, text: TextEmbeddings, options: CamsOptions, device: torch.device) -> None:
        self.alignment, self.options = alignment, options
        self.heads = alignment.heads.to(device)
        self.classes = len(text.classes)
        self._text = text.all.to(device)
        self.renew()
        photos = alignment.class_photos.to(device, torch.float32)
        self.trust = photos / (photos + options.few_photos).clamp_min(1e-9)  # (C,)
        if options.few_photos == 0:
            self.trust = torch.ones_like(self.trust)
        self.trust = self.trust * (alignment.average_precision.to(device) >= options.min_average_precision)

    @torch.no_grad()
    def renew(self) -> None:
        """Project the words again, after the heads have changed."""
        self.words = F.normalize(self.heads.tsa(self._text), dim=1)  # (C + M, E)
        self.scale = self.options.aligned_scale or 1 / self.heads.temperature.item()

    @property
    def logits(self) -> Logits:
        """Pooled patch features ``(B, E)`` -> logits ``(B, C + M)`` through both heads."""
        return lambda features: self.scale * F.normalize(self.heads.isa(features), dim=-1) @ self.words.T

    def maps(
        self,
        tokens_cls: Tensor,
        tail: Tail,
        labels: Sequence[tuple[int, ...]],
        memberships: Sequence[Tensor | None],
    ) -> Tensor:
        """Maps of all (image, class) pairs.

        Args:
            tokens_cls: Input of the last block ``(B, N + 1, D)``.
            tail: What stands behind it.
            labels: Class indices of each image.
            memberships: Superpixels of each image ``(S, N)``, or None.

        Returns:
            ``(T, N)``, each in [0, 1].
        """
        options = self.options
        tokens = head_features(tokens_cls, tail, self.alignment.features)  # (B, N, E)
        maps: Tensor | None = None
        if options.aligned_readout != "gradcam":
            maps = min_max(self._dense(tokens, labels, memberships))  # (T, N)
        if options.aligned_readout != "dense":
            gradcam = min_max(self._gradcam(tokens_cls, tokens, tail, labels, memberships))  # (T, N)
            weight = options.aligned_dense_weight
            maps = gradcam if maps is None else min_max(weight * maps + (1 - weight) * gradcam)
        assert maps is not None  # noqa: S101 - one of the two was made
        return maps

    def trusted(self, labels: Sequence[tuple[int, ...]]) -> bool:
        """Whether these classes need no part of the plain CAM."""
        return bool((self._trust_of(labels) == 1).all())

    def blend(self, aligned: Tensor, plain: Tensor, labels: Sequence[tuple[int, ...]]) -> Tensor:
        """Mix aligned and plain maps ``(T, N)`` by each class's `trust`."""
        trust = self._trust_of(labels).unsqueeze(1)  # (T, 1)
        return min_max(trust * aligned + (1 - trust) * plain)

    def _trust_of(self, labels: Sequence[tuple[int, ...]]) -> Tensor:
        return self.trust[[label for own in labels for label in own]]  # (T,)

    @torch.no_grad()
    def _dense(self, tokens: Tensor, labels: Sequence[tuple[int, ...]], memberships: Sequence[Tensor | None]) -> Tensor:
        found: list[Tensor] = []
        for features, own, membership in zip(F.normalize(self.heads.isa(tokens), dim=-1), labels, memberships, strict=True):
            features = F.normalize(self._smooth(features, membership), dim=-1)  # (N, E)
            found.append(text_probabilities(features, self._words_of(own), len(own), self.scale))
        return torch.cat(found)  # (T, N)

    def _gradcam(
        self,
        tokens_cls: Tensor,
        tokens: Tensor,
        tail: Tail,
        labels: Sequence[tuple[int, ...]],
        memberships: Sequence[Tensor | None],
    ) -> Tensor:
        relu = self.options.aligned_relu
        if self.options.aligned_layer == "ln_1":
            entries = softmax_entries(labels, self.classes, len(self.words), tokens_cls.device)
            features = tail.value_features if self.alignment.features == "value" else tail.features
            return softmax_gradcam(tokens_cls, tail.normalise, features, tail.patches, self.logits, *entries, relu)
        return torch.cat(
            [
                head_gradcam(
                    self._smooth(features, membership), self.heads.isa, self._words_of(own), len(own), 1 / self.scale, relu
                )
                for features, own, membership in zip(tokens, labels, memberships, strict=True)
            ]
        )

    def _smooth(self, features: Tensor, membership: Tensor | None) -> Tensor:
        if membership is None:
            return features
        return smooth_over_superpixels(features, membership.to(features.device), self.options.aligned_superpixel_share)

    def _words_of(self, labels: tuple[int, ...]) -> Tensor:
        """The image's classes, then all background words, ``(K + M, E)``."""
        return torch.cat([self.words[list(labels)], self.words[self.classes :]])


@torch.no_grad()
def head_features(tokens_cls: Tensor, tail: Tail, which: str) -> Tensor:
    """Patch features that heads read.

    Args:
        tokens_cls: Input of the last block ``(B, N + 1, D)``.
        tail: What stands behind it.
        which: ``output`` of the last block, or its ``value`` path alone.

    Returns:
        ``(B, N, E)``.
    """
    features = tail.value_features if which == "value" else tail.features
    return features(tokens_cls, tail.normalise(tokens_cls))
