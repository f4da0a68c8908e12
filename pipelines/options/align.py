"""Options of ``[align]``: the training of CMPA's heads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.sources import Options, option


class AlignOptions(Options):
    """``[align]``: CMPA, the heads that pull image and text features together."""

    cam: Annotated[
        Literal["initial", "refined"], option("plain-CLIP CAM that pools the features: as it is, or refined as in [refine]")
    ] = "refined"
    cam_power: Annotated[float, Field(gt=0, description="exponent of that CAM: above 1, its core weighs more")] = 2.0
    features: Annotated[
        Literal["output", "value"],
        option("patch features that the heads read: the last block's output, or the value path alone"),
    ] = "output"
    hidden: Annotated[int, Field(ge=1, description="width d2 inside the heads")] = 512
    residual: Annotated[bool, option("heads add to the features, from zero on; off = they replace them (the paper)")] = True
    loss: Annotated[
        Literal["cross", "intra", "direct"],
        option("cross = image to text prototypes and back (CMPA); intra = each to its own; direct = no prototypes"),
    ] = "cross"
    prototypes: Annotated[
        Literal["class", "kmeans"], option("one a class from its labels, or k-means over each modality (the paper)")
    ] = "class"
    text_noise: Annotated[
        float, Field(ge=0, description="length of the noise that makes a class's embedding another one for each of its samples")
    ] = 0.0
    background: Annotated[float, Field(ge=0, description="weight of: what CAMs leave prefers background words")] = 1.0
    token_contrast: Annotated[
        float, Field(ge=0, description="weight of: every patch against the text prototypes, by its share in the CAM")
    ] = 2.0
    separation: Annotated[float, Field(ge=0, description="weight of the contrast between classes' prototypes")] = 0.0
    temperature: Annotated[float, Field(gt=0, description="of the softmax over cosines (SSR: 0.05)")] = 0.05
    learn_temperature: Annotated[bool, option("train the temperature (the paper does)")] = False
    epochs: Annotated[float, Field(gt=0, description="passes over the photos")] = 6.0
    iterations: Annotated[int, Field(ge=0, description="steps instead of epochs, 0 = epochs decide (SSR: 30000 VOC)")] = 0
    batch: Annotated[int, Field(ge=1, description="photos a step, over all processes (SSR: 128 VOC, 256 COCO)")] = 32
    learning_rate: Annotated[float, Field(gt=0, description="of AdamW (SSR: 1e-5)")] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, description="of AdamW")] = 2e-3
    refresh: Annotated[int, Field(ge=0, description="steps between two refreshes of the prototypes, 0 = once an epoch")] = 0
    tokens: Annotated[int, Field(ge=2, description="patches kept of each photo, drawn once")] = 256
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="of heads, batches and k-means")] = 0
    resume: Annotated[
        Literal["auto", "never"], option("go on where a stopped training was, or train from the start on the tokens kept")
    ] = "auto"
