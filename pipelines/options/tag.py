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
            "Score of a class in an image: dense takes its best patches in the dense read-out, cls CLIP's pooled "
            "token, heads the best patches through alignment heads (--ckpt), mean both dense and heads; auto is "
            "heads with --ckpt, and else dense.",
            choices=("auto", "dense", "cls", "heads", "mean"),
        ),
    ] = "auto"
    best_share: Annotated[
        float,
        Field(gt=0, le=1, description="Share of an image's patches, the best of a class, whose mean is the class's score."),
    ] = 0.02
    tag_threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Score from which a class is a tag; without it, calibrated by images with --labels, or else a fixed "
            "default.",
        ),
    ] = None
    class_thresholds: Annotated[
        bool, option("Calibrate a threshold for each class; where a class has few images, it is drawn towards that of all.")
    ] = False
    tag_thresholds: Annotated[
        Path | None,
        option("File thresholds.json of another `ssr tag` with the same tagger and classes, in place of a calibration."),
    ] = None
