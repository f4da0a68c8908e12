"""Maps of images without labels: the images are tagged, and the tags replace the labels, in one pass of the encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipelines.method.cam_extractor import extract_cams, one_pass_scales
from pipelines.method.composition import refined_cams
from pipelines.method.encoders import Encoders
from pipelines.method.evidence import Needs
from pipelines.method.parts_in_use import cam_needs, refine_needs
from pipelines.method.photo import Photo, View
from pipelines.method.tagging import tag_scores, tagger_of
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.options.tag import TagOptions


@dataclass(frozen=True)
class LabelFree:
    """The tags, scores and maps of a batch.

    Attributes:
        photos: The same images, labelled with their tags.
        scores: Scores of all classes, ``(B, C)`` fp32 in [0, 1].
        cams: Initial CAMs of the tags, ``(T, h, w)`` in [0, 1], rounded as `ssr cams` stores them.
        refined: The refined CAMs of the tags, of the same shape and range.
    """

    photos: list[Photo]
    scores: NDArray[np.float32]
    cams: Tensor
    refined: Tensor


def label_free_needs(tags: TagOptions, cams: CamsOptions, refine: RefineOptions) -> Needs:
    """Return the fields of the evidence that `label_free` reads."""
    return tagger_of(tags, cams).needs(cams) | cam_needs(cams) | refine_needs(refine)


def label_free(
    encoders: Encoders,
    photos: Sequence[Photo],
    thresholds: NDArray[np.floating],
    tags: TagOptions,
    cams: CamsOptions,
    refine: RefineOptions,
) -> LabelFree:
    """Tag the images, read out the CAMs of the tags, and refine them.

    Args:
        encoders: Encoders whose needs include `label_free_needs`.
        photos: A batch, prepared for the scales of ``cams``; all have the same grid at every scale.
        thresholds: Score from which each class is a tag, ``(C,)``.
        tags: The tagger.
        cams: Read-out.
        refine: Affinity, column masks, propagation.
    """
    view = View(one_pass_scales(cams).index(1.0))
    evidence = encoders.encode(photos, view)
    scores = tag_scores(evidence, cams, tags).cpu().numpy()
    found = [tuple(np.flatnonzero(of_photo >= thresholds).tolist()) for of_photo in scores]
    tagged = [replace(one, sample=replace(one.sample, labels=own)) for one, own in zip(photos, found, strict=True)]
    evidence = evidence.replacing(labels=tuple(found))
    maps = extract_cams(encoders, tagged, cams, {view: evidence}).half().float()  # (T, h, w)
    refined = refined_cams(evidence, maps.flatten(1), refine).view_as(maps)
    return LabelFree(tagged, scores, maps, refined)
