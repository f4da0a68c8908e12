"""Options of ``[align]``: the training of CMPA's heads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.sources import Options, option


class AlignOptions(Options):
    """``[align]``: CMPA, the heads that pull image and text features together."""

    cam: Annotated[
        Literal["initial", "refined"],
        option("plain-CLIP CAM that pools the patch features of each class: initial, or refined as [refine] says"),
    ] = "refined"
    cam_power: Annotated[
        float, Field(gt=0, description="exponent of that CAM before pooling; above 1, strong patches weigh more")
    ] = 2.0
    features: Annotated[
        Literal["output", "value"],
        option("patch features that the alignment heads read: output of the last block, or its value path alone"),
    ] = "output"
    hidden: Annotated[int, Field(ge=1, description="hidden width d2 of the alignment heads, channels")] = 512
    residual: Annotated[
        bool, option("on = the heads' output, zero at first, is added to the features; off = it replaces them (SSR)")
    ] = True
    loss: Annotated[
        Literal["cross", "intra", "direct"],
        option("cross = image against text prototypes and back (CMPA); intra = within each modality; direct = no prototypes"),
    ] = "cross"
    prototypes: Annotated[
        Literal["class", "kmeans"],
        option("class = one prototype per class, from the labels; kmeans = k-means over each modality (SSR)"),
    ] = "class"
    text_noise: Annotated[
        float, Field(ge=0, description="mean norm of the Gaussian noise added to a class embedding, drawn per sample; 0 = none")
    ] = 0.0
    background: Annotated[
        float,
        Field(
            ge=0, description="weight of the background loss: patches outside the CAMs should match background words; 0 = off"
        ),
    ] = 1.0
    token_contrast: Annotated[
        float,
        Field(
            ge=0,
            description="weight of the patch loss: each patch against the text prototypes, weighted by its CAM value; 0 = off",
        ),
    ] = 2.0
    cooccurrence: Annotated[
        float,
        Field(
            ge=0,
            description="how strongly patches whose look-alikes lie in other images of the same class are kept out of the"
            " background loss; 0 = off",
        ),
    ] = 2.0
    neighbours: Annotated[int, Field(ge=1, description="look-alikes of a patch that cooccurrence counts")] = 40
    separation: Annotated[
        float, Field(ge=0, description="weight of the loss that pushes the text prototypes of different classes apart; 0 = off")
    ] = 0.0
    temperature: Annotated[
        float, Field(gt=0, description="temperature of the softmax over cosine similarities (SSR: 0.05)")
    ] = 0.05
    learn_temperature: Annotated[bool, option("train the temperature together with the heads (SSR: on)")] = False
    epochs: Annotated[float, Field(gt=0, description="passes over the training images; ignored if iterations is set")] = 6.0
    min_iterations: Annotated[
        int, Field(ge=0, description="least optimiser steps that epochs gives: few images need more passes")
    ] = 90
    iterations: Annotated[int, Field(ge=0, description="optimiser steps; 0 = as many as epochs gives (SSR: 30000 VOC)")] = 0
    batch: Annotated[int, Field(ge=1, description="images per step, over all processes (SSR: 128 VOC, 256 COCO)")] = 32
    learning_rate: Annotated[float, Field(gt=0, description="learning rate of AdamW (SSR: 1e-5)")] = 1e-4
    final_rate: Annotated[
        float, Field(gt=0, le=1, description="share of the learning rate at the last step, fallen linearly; 1 = constant")
    ] = 0.1
    weight_decay: Annotated[float, Field(ge=0, description="weight decay of AdamW")] = 2e-3
    refresh: Annotated[int, Field(ge=0, description="steps between two updates of the prototypes; 0 = once per epoch")] = 0
    tokens: Annotated[int, Field(ge=2, description="patches per image that the training sees, sampled once")] = 256
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="random seed of the heads' weights and the batches")] = 0
    resume: Annotated[
        Literal["auto", "never"],
        option("auto = continue a stopped training; never = train from the start, on the patches already sampled"),
    ] = "auto"
