"""Options of ``[tag]``: image-level labels from class names alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipelines.options.sources import Options, option


class TagOptions(Options):
    """``[tag]``: which classes a photo shows, by the frozen CLIP."""

    tagger: Annotated[
        str,
        option(
            "score of a class in an image: dense = its best patches in the dense read-out; cls = CLIP's pooled token; heads ="
            " best patches through alignment heads (--ckpt); mean = dense and heads; auto = heads with --ckpt, else dense",
            choices=("auto", "dense", "cls", "heads", "mean"),
        ),
    ] = "auto"
    best_share: Annotated[
        float,
        Field(gt=0, le=1, description="share of an image's patches, the best of a class, whose mean is the class's score"),
    ] = 0.02
    tag_threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="score from which a class is a tag; without it, calibrated by images with --labels, else a default",
        ),
    ] = None
    class_thresholds: Annotated[
        bool, option("calibrate a threshold for each class, drawn towards that of all where a class has few images")
    ] = False
    tag_thresholds: Annotated[
        Path | None, option("thresholds.json of another `ssr tag` with the same tagger and classes, in place of a calibration")
    ] = None
