"""Options of ``[align]``: the training of CMPA's heads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.sources import Options, option


class AlignOptions(Options):
    """``[align]``: CMPA, the heads that pull image and text features together."""

    cam: Annotated[
        Literal["initial", "refined"],
        option("Plain-CLIP CAM that pools the patch features of each class: initial, or refined as [refine] says."),
    ] = "refined"
    cam_power: Annotated[
        float, Field(gt=0, description="Exponent of that CAM before pooling; above 1, strong patches weigh more.")
    ] = 2.0
    features: Annotated[
        Literal["output", "value"],
        option("Patch features that the alignment heads read: the output of the last block, or its value path alone."),
    ] = "output"
    hidden: Annotated[int, Field(ge=1, description="Hidden width d2 of the alignment heads, in channels.")] = 512
    residual: Annotated[
        bool, option("Add the heads' output, which is zero at first, to the features; when off, it replaces them (SSR).")
    ] = True
    loss: Annotated[
        Literal["cross", "intra", "direct"],
        option(
            "Loss: cross compares images with text prototypes and back (CMPA), intra compares within each "
            "modality, direct needs no prototypes."
        ),
    ] = "cross"
    prototypes: Annotated[
        Literal["class", "kmeans"],
        option("Prototypes: class makes one for each class from the labels, kmeans clusters each modality (SSR)."),
    ] = "class"
    text_noise: Annotated[
        float,
        Field(
            ge=0,
            description="Mean norm of the Gaussian noise that is added to a class embedding, drawn for each sample; 0 adds "
            "none.",
        ),
    ] = 0.0
    background: Annotated[
        float,
        Field(
            ge=0,
            description="Weight of the background loss, which matches patches outside the CAMs with background words; 0 turns"
            " it off.",
        ),
    ] = 1.0
    token_contrast: Annotated[
        float,
        Field(
            ge=0,
            description="Weight of the patch loss: each patch against the text prototypes, weighted by its CAM value; 0 turns"
            " it off.",
        ),
    ] = 2.0
    cooccurrence: Annotated[
        float,
        Field(
            ge=0,
            description="How strongly patches whose look-alikes lie in other images of the same class are kept out of the "
            "background loss; 0 turns this off.",
        ),
    ] = 2.0
    neighbours: Annotated[int, Field(ge=1, description="Look-alikes of a patch that cooccurrence counts.")] = 40
    separation: Annotated[
        float,
        Field(
            ge=0, description="Weight of the loss that pushes the text prototypes of different classes apart; 0 turns it off."
        ),
    ] = 0.0
    temperature: Annotated[
        float, Field(gt=0, description="Temperature of the softmax over cosine similarities (SSR: 0.05).")
    ] = 0.05
    learn_temperature: Annotated[bool, option("Train the temperature together with the heads (SSR: on).")] = False
    epochs: Annotated[
        float, Field(gt=0, description="Passes over the training images; iterations, if it is set, takes their place.")
    ] = 6.0
    min_iterations: Annotated[
        int, Field(ge=0, description="Fewest optimiser steps that epochs gives: few images need more passes.")
    ] = 90
    iterations: Annotated[
        int, Field(ge=0, description="Optimiser steps; 0 takes as many as epochs gives (SSR: 30000 for VOC).")
    ] = 0
    batch: Annotated[int, Field(ge=1, description="Images in a step, over all processes (SSR: 128 for VOC, 256 for COCO).")] = (
        32
    )
    learning_rate: Annotated[float, Field(gt=0, description="Learning rate of AdamW (SSR: 1e-5).")] = 1e-4
    final_rate: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Share of the learning rate that is left at the last step; it falls linearly, and 1 keeps it constant.",
        ),
    ] = 0.1
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay of AdamW.")] = 2e-3
    refresh: Annotated[
        int, Field(ge=0, description="Steps between two updates of the prototypes; 0 updates them once in each pass.")
    ] = 0
    tokens: Annotated[int, Field(ge=2, description="Patches of each image that the training sees; they are sampled once.")] = (
        256
    )
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="Random seed of the heads' weights and the batches.")] = 0
    resume: Annotated[
        Literal["auto", "never"],
        option(
            "What to do with a stopped training: auto continues it, never trains from the start, on the patches "
            "already sampled."
        ),
    ] = "auto"
