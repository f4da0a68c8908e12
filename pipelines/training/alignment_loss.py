"""CMPA's loss on one batch, with its positives and negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.models.alignment import AlignmentHeads
from pipelines.ops.prototype_loss import background_preference, prototype_contrast, token_contrast, weighted_pool
from pipelines.options.align import AlignOptions


@dataclass(frozen=True)
class Batch:
    """The images of one step. A *sample* is an (image, present class) pair.

    Attributes:
        tokens: Patch features ``(B, T, E)``.
        cams: ``(B, K, T)`` in [0, 1]; zero in slots that no class fills.
        classes: ``(B, K)`` int64; -1 in slots that no class fills.
        image_clusters: ``(B, K)`` int64, each sample's image prototype if k-means made them.
        valid: ``(B, T)`` bool: patches of the image; padding is no background. None: all patches are of the image.
        unknown: ``(B, T)`` in [0, 1]: estimate from other images that a patch shows a class of its own image. That share of the
            patch is not background, even where the CAMs leave it out. None: all that they leave out is background.
    """

    tokens: Tensor
    cams: Tensor
    classes: Tensor
    image_clusters: Tensor
    valid: Tensor | None = None
    unknown: Tensor | None = None


@dataclass(frozen=True)
class Prototypes:
    """The prototypes that features are contrasted with, as of the last refresh.

    Attributes:
        image: ``(P, E)`` L2-normalised.
        text: ``(Q, E)`` L2-normalised; None: the present projected class embeddings.
        text_clusters: ``(C,)`` int64, each class's row of ``text``.
    """

    image: Tensor
    text: Tensor | None = None
    text_clusters: Tensor | None = None


def alignment_loss(
    heads: AlignmentHeads,
    batch: Batch,
    text: Tensor,
    class_count: int,
    prototypes: Prototypes,
    options: AlignOptions,
    noise: Tensor | None = None,
) -> Tensor:
    """Compute L_proto of a batch (SSR), with a background term and a contrast of single patches in addition.

    Args:
        heads: The two heads and the temperature.
        batch: Tokens, CAMs and classes.
        text: Class and background embeddings ``(C + M, E)``.
        class_count: The number of classes C.
        prototypes: Prototypes of the last refresh.
        options: Loss terms and their weights.
        noise: Added to the class embedding of each slot before its head, ``(B, K, E)``; None: one embedding per class.

    Returns:
        Scalar.
    """
    temperature = heads.temperature
    projected = heads.isa(batch.tokens)  # (B, T, E)
    words = F.normalize(heads.tsa(text), dim=1)  # (C + M, E)
    filled = batch.classes >= 0  # (B, K)
    classes = batch.classes[filled]  # (S,)
    weights = batch.cams**options.cam_power  # (B, K, T)
    image = weighted_pool(projected, weights)[filled]  # (S, E)
    own = words[classes] if noise is None else F.normalize(heads.tsa(text[classes] + noise[filled]), dim=1)  # (S, E)
    if options.loss == "direct":
        return (1 - (image * own).sum(dim=1)).mean() if len(classes) else image.sum()
    by_cluster = prototypes.text is not None and prototypes.text_clusters is not None
    image_positive = batch.image_clusters[filled] if by_cluster else classes
    if prototypes.text is not None and prototypes.text_clusters is not None:
        text_rows, text_positive = torch.cat([prototypes.text, words[class_count:]]), prototypes.text_clusters[classes]
    else:
        text_rows, text_positive = words, classes
    if options.loss == "intra":
        return prototype_contrast(image, image_positive, prototypes.image, temperature) + prototype_contrast(
            own, text_positive, text_rows, temperature
        )
    loss = prototype_contrast(image, text_positive, text_rows, temperature)
    loss = loss + prototype_contrast(own, image_positive, prototypes.image, temperature)
    if options.separation:
        rows = torch.arange(class_count, device=words.device)
        loss = loss + options.separation * prototype_contrast(words[:class_count], rows, words[:class_count], temperature)
    unknown = torch.zeros_like(projected[..., 0]) if batch.unknown is None else batch.unknown  # (B, T)
    outside = (1 - torch.cat([batch.cams, unknown.unsqueeze(1)], dim=1).amax(dim=1)).clamp_min(0)  # (B, T)
    outside = outside if batch.valid is None else outside * batch.valid
    if options.background:
        pooled = weighted_pool(projected, outside.unsqueeze(1))[:, 0]  # (B, E)
        loss = loss + options.background * background_preference(pooled, words, class_count, temperature)
    if options.token_contrast:
        loss = loss + options.token_contrast * token_contrast(
            F.normalize(projected, dim=2), weights, batch.classes, outside, words, class_count, temperature
        )
    return loss
