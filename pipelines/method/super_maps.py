"""Maps of super-classes from image-level labels, with borders that follow DINO's features (CD-CLIP's SBE)."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.method.evidence import Evidence, Needs, TextFeatures
from pipelines.method.parts_in_use import readout_of
from pipelines.ops.scaling import min_max
from pipelines.ops.super_class_maps import UNKNOWN, boundary_maps
from pipelines.options.stages import CamsOptions


def super_map_needs(options: CamsOptions) -> Needs:
    """Return the fields of the evidence that `super_maps` reads."""
    needs: Needs = frozenset({"text", "super_classes", "dino_tokens"})
    return needs | readout_of(options).needs(options)


@torch.no_grad()
def super_maps(evidence: Evidence, options: CamsOptions) -> Tensor:
    """Compute a map of each image's super-classes.

    The read-out of the CAMs, applied to super-classes, pools DINO's features into a prototype; each patch's map is its cosine
    to that prototype, scaled to [0, 1].

    Args:
        evidence: Evidence with the fields of `super_map_needs`; where it has ``valid``, padding is left out.
        options: The read-out. Alignment heads are not used, because they are trained for classes and not for super-classes.

    Returns:
        ``(B, S, N)`` fp32 in [0, 1]; `UNKNOWN` for super-classes that an image's labels do not contain, and in padding.
    """
    text = evidence.text
    if text.supers is None:
        raise ValueError("expected super-classes among the text")
    words = torch.cat([text.supers, text.all[text.classes :]])  # (S + M, E)
    labels = tuple(tuple(sorted({text.super_of_class[label] for label in own})) for own in evidence.labels)
    named = evidence.replacing(text=TextFeatures(words, len(text.supers), text.logit_scale), labels=labels)
    found = text.all.new_full((len(labels), len(text.supers), evidence.dino_tokens.shape[1]), UNKNOWN)  # (B, S, N)
    if not any(labels):
        return found
    shape = (sum(named.counts), evidence.dino_tokens.shape[1])  # T, N
    cams = named.padded(min_max(readout_of(options).made(shape, named, options)))  # (B, K, N)
    valid = evidence.valid if "valid" in evidence else None  # (B, N)
    maps = named.flat(boundary_maps(cams, evidence.dino_tokens.float(), valid))  # (T, N)
    images = [image for image, own in enumerate(labels) for _ in own]
    found[images, [super_class for own in labels for super_class in own]] = maps
    return found
