"""Taggers, which score every class of the list in images without labels. `TAGGERS` is the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.errors import UsageError
from pipelines.method import aligned, readouts
from pipelines.method.evidence import Evidence, Needs, Part, always
from pipelines.method.parts_in_use import in_use
from pipelines.ops.best_patches import best_patches
from pipelines.options.stages import CamsOptions
from pipelines.options.tag import TagOptions
from pipelines.plugins import Table

Scores = Callable[[Evidence, CamsOptions, TagOptions], Tensor]
"""Maps evidence whose labels are all classes of the list, and options, to ``(B, C)`` in [0, 1]."""


MANY = 20
"""Number of VOC's classes, on whose images the default thresholds were chosen; the exponent 0.8 also fits COCO's best ones."""


@dataclass(frozen=True)
class Tagger(Part[Scores, CamsOptions]):
    """One entry of `TAGGERS`.

    Attributes:
        threshold: Score from which a class is a tag without a calibration, for up to `MANY` classes.
    """

    threshold: float = 0.5

    def default_threshold(self, classes: int) -> float:
        """Return `threshold` for a list of this length: the more names share a softmax, the lower is the best score."""
        return self.threshold * float(min(1.0, (MANY / classes) ** 0.8))


def dense(evidence: Evidence, cams: CamsOptions, options: TagOptions) -> Tensor:
    """Score the best patches of the dense read-out over all class names and background words, ``(B, C)``."""
    return best_patches(evidence.padded(readouts.dense(evidence, cams)), options.best_share)


@torch.inference_mode()
def cls(evidence: Evidence, cams: CamsOptions, options: TagOptions) -> Tensor:
    """Return the softmax over all classes of the pooled token's cosines, at half of CLIP's own scale, ``(B, C)``."""
    tail, text = evidence.tail, evidence.text
    if not tail.prefix:
        raise UsageError("this CLIP has no pooled token", "--tagger dense")
    tokens = tail.output(evidence.tokens_cls, tail.normalise(evidence.tokens_cls))[:, :1]  # (B, 1, D)
    pooled = F.normalize(tail.project(tokens)[:, 0], dim=-1)  # (B, E)
    return (text.logit_scale / 2 * pooled @ text.all[: text.classes].T).softmax(dim=-1)


def heads(evidence: Evidence, cams: CamsOptions, options: TagOptions) -> Tensor:
    """Score the best patches through alignment heads.

    A class with few training images keeps the share of `dense` that its CAM has.
    """
    return _mixed(evidence, cams, options, evidence.alignment.weight(evidence.labels).unsqueeze(1))


def mean(evidence: Evidence, cams: CamsOptions, options: TagOptions) -> Tensor:
    """Score the best patches of the mean of both read-outs.

    Heads are better at the classes of their training, and plain CLIP is better at all others.
    """
    return _mixed(evidence, cams, options, torch.tensor(0.5))


@torch.inference_mode()
def _mixed(evidence: Evidence, cams: CamsOptions, options: TagOptions, weight: Tensor) -> Tensor:
    plain, through = readouts.dense(evidence, cams), aligned.dense(evidence, cams)  # (T, N)
    weight = weight.to(plain.device)
    return best_patches(evidence.padded(weight * through + (1 - weight) * plain), options.best_share)


def _needs_heads(cams: CamsOptions) -> Needs:
    return readouts.dense_needs(cams) | aligned.ALIGNED_READOUTS["dense"].needs(cams)


_DENSE = readouts.READOUTS["dense"].options
_HEADS = (*_DENSE, *aligned.ALIGNED_READOUTS["dense"].options, "few_photos", "min_average_precision")

TAGGERS: Table[Tagger] = Table(
    "tagger",
    Tagger,
    {
        "dense": Tagger(dense, readouts.dense_needs, (*_DENSE, "best_share"), 0.65),
        "cls": Tagger(cls, always("tokens_cls", "text"), (), 0.14),
        "heads": Tagger(heads, _needs_heads, (*_HEADS, "best_share"), 0.73),
        "mean": Tagger(mean, _needs_heads, (*_DENSE, "aligned_scale", "aligned_superpixel_share", "best_share"), 0.45),
    },
)


def tagger_name(options: TagOptions, cams: CamsOptions) -> str:
    """Return the tagger's name, with ``auto`` replaced by its choice."""
    if options.tagger != "auto":
        return options.tagger
    return "dense" if cams.ckpt is None else "heads"


def tagger_of(options: TagOptions, cams: CamsOptions) -> Tagger:
    """Return the entry of `TAGGERS` that the options name.

    Raises:
        UsageError: There is no tagger of this name, or it reads alignment heads and none are given.
    """
    name = tagger_name(options, cams)
    tagger = in_use(TAGGERS, name, "--tagger", cams, options)
    if cams.ckpt is None and "alignment" in tagger.needs(cams):
        raise UsageError(f"tagger {name} reads alignment heads, found none", "--ckpt FILE, or --tagger dense")
    return tagger


def tag_scores(evidence: Evidence, cams: CamsOptions, options: TagOptions) -> Tensor:
    """Compute the scores of every class in a batch of images.

    Args:
        evidence: Evidence with the needs of the tagger; its labels are not read.
        cams: Options of the read-outs.
        options: The tagger.

    Returns:
        ``(B, C)`` fp32 in [0, 1].
    """
    text = evidence.alignment.text if "alignment" in evidence else evidence.text
    every = tuple(range(text.classes))
    shape = (len(evidence.labels), text.classes)  # B, C
    named = evidence.replacing(labels=(every,) * len(evidence.labels))
    return tagger_of(options, cams).made(shape, named, cams, options).float()


def tag_values(options: TagOptions, cams: CamsOptions) -> dict[str, Any]:
    """Return the options that change a score, as JSON holds them."""
    names = set(tagger_of(options, cams).options)
    values = options.model_dump(mode="json", include=names) | cams.model_dump(mode="json", include=names)
    return {"tagger": tagger_name(options, cams), **values}
