"""Alignment heads as `ssr align` leaves them and `ssr cams --ckpt` reads them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.datasets.classes import ClassList
from pipelines.encoders.weights import Weights
from pipelines.errors import UsageError
from pipelines.models.alignment import AlignmentHeads
from pipelines.ops.dense_readout import smooth_over_superpixels, text_probabilities
from pipelines.ops.gradcam import LastBlock, Logits, min_max, softmax_entries, softmax_gradcam
from pipelines.ops.head_gradcam import head_gradcam
from pipelines.options.stages import CamsOptions
from pipelines.stages.embeddings import TextEmbeddings
from pipelines.stores.manifest import differences
from pipelines.training.checkpoint import read_checkpoint, write_checkpoint

FLAG = "--ckpt"
FORMAT = "ssr alignment heads 2"
_WHAT = {"clip": "another CLIP", "classes": "another class list", "text": "other class or background embeddings"}


@dataclass(frozen=True)
class Alignment:
    """A trained checkpoint.

    Attributes:
        heads: In evaluation mode.
        features: Which patch features they read, ``output`` or ``value``.
        class_photos: Training photos of each class, ``(C,)``.
        average_precision: How well the heads tell them from the other photos, ``(C,)`` in [0, 1].
        image_prototypes: ``(P, E)`` as of the end of the training.
    """

    heads: AlignmentHeads
    features: str
    class_photos: Tensor
    average_precision: Tensor
    image_prototypes: Tensor


def identity(weights: Weights, classes: ClassList, text: TextEmbeddings) -> dict[str, Any]:
    """What a checkpoint must be used with: the CLIP, the classes and the embeddings that it was trained on."""
    return {"clip": weights.provenance(), "classes": list(classes.names), "text": text.provenance()}


def write_alignment(path: Path, alignment: Alignment, belongs_to: dict[str, Any]) -> None:
    """Write a checkpoint; ``belongs_to`` is `identity`."""
    heads = alignment.heads
    note = {
        "format": FORMAT,
        "belongs_to": belongs_to,
        "residual": heads.isa.residual,
        "features": alignment.features,
    }
    tensors = {
        **heads.state_dict(),
        "class_photos": alignment.class_photos,
        "average_precision": alignment.average_precision,
        "image_prototypes": alignment.image_prototypes,
    }
    write_checkpoint(path, tensors, note)


def read_alignment(path: Path, weights: Weights, classes: ClassList, text: TextEmbeddings) -> Alignment:
    """Read a checkpoint for this CLIP and these classes.

    Raises:
        UsageError: No such file, not one of ours, or made with another CLIP, class list or text bank.
    """
    tensors, note = read_checkpoint(path, FLAG)
    if note.get("format") != FORMAT:
        raise UsageError(f"{path} does not hold alignment heads", f"{FLAG}: a file written by `ssr align`")
    wanted, found = identity(weights, classes, text), note.get("belongs_to")
    for key, what in _WHAT.items():
        if not isinstance(found, dict) or found.get(key) != wanted[key]:
            old = found.get(key) if isinstance(found, dict) else None
            first = differences(old, wanted[key], key)[0]
            raise UsageError(f"{path} was trained with {what} ({first})", f"{FLAG}, or train anew with `ssr align`")
    try:
        width = text.classes.shape[1]
        hidden = tensors["isa.layers.0.weight"].shape[0]
        heads = AlignmentHeads(width, hidden, bool(note["residual"]), 1.0, learn_temperature=False)
        class_photos, prototypes = tensors.pop("class_photos"), tensors.pop("image_prototypes")
        precision = tensors.pop("average_precision")
        heads.load_state_dict(tensors)
        counted = class_photos.shape == (len(classes.names),) and class_photos.dtype == torch.int64
        ranked = precision.shape == class_photos.shape and bool(((precision >= 0) & (precision <= 1)).all())
        if not counted or not ranked or bool((class_photos < 0).any()) or note["features"] not in ("output", "value"):
            raise ValueError
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (*tensors.values(), prototypes)):
            raise ValueError
        return Alignment(heads.eval().requires_grad_(False), note["features"], class_photos, precision, prototypes)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path} is damaged: its tensors are not those of alignment heads", FLAG) from error


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
        last_block: LastBlock,
        labels: Sequence[tuple[int, ...]],
        memberships: Sequence[Tensor | None],
    ) -> Tensor:
        """Maps of all (image, class) pairs.

        Args:
            tokens_cls: Input of the last block ``(B, N + 1, D)``.
            last_block: The modules behind it.
            labels: Class indices of each image.
            memberships: Superpixels of each image ``(S, N)``, or None.

        Returns:
            ``(T, N)``, each in [0, 1].
        """
        options = self.options
        tokens = head_features(tokens_cls, last_block, self.alignment.features)  # (B, N, E)
        maps: Tensor | None = None
        if options.aligned_readout != "gradcam":
            maps = min_max(self._dense(tokens, labels, memberships))  # (T, N)
        if options.aligned_readout != "dense":
            gradcam = min_max(self._gradcam(tokens_cls, tokens, last_block, labels, memberships))  # (T, N)
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
        last_block: LastBlock,
        labels: Sequence[tuple[int, ...]],
        memberships: Sequence[Tensor | None],
    ) -> Tensor:
        relu = self.options.aligned_relu
        if self.options.aligned_layer == "ln_1":
            entries = softmax_entries(labels, self.classes, len(self.words), tokens_cls.device)
            features = last_block.value_features if self.alignment.features == "value" else last_block.features
            return softmax_gradcam(tokens_cls, last_block, self.logits, *entries, features, relu)
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
def head_features(tokens_cls: Tensor, last_block: LastBlock, which: str) -> Tensor:
    """Patch features that heads read.

    Args:
        tokens_cls: Input of the last block ``(B, N + 1, D)``.
        last_block: The modules behind it.
        which: ``output`` of the last block, or its ``value`` path alone.

    Returns:
        ``(B, N, E)``.
    """
    features = last_block.value_features if which == "value" else last_block.features
    return features(tokens_cls, last_block.block.ln_1(tokens_cls))
