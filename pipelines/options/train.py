"""Options of ``[train]`` and ``[predict]``: the segmentation model on the frozen CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.boundary import BilateralSrgb, BilateralSxy, BoundaryOptions, GaussianSxy
from pipelines.options.sources import Options, option


class TrainOptions(Options):
    """``[train]``: a segmentation decoder on the frozen CLIP, from pseudo-masks made on line."""

    ckpt: Annotated[
        Path | None,
        option("alignment heads of `ssr align` for the CAMs (.safetensors; auto = those in WORK); without it, plain CLIP"),
    ] = None
    supervision: Annotated[
        Literal["pseudo", "masks"],
        option("pseudo = pseudo-masks made online from image-level labels; masks = ground truth (opens it): the upper bound"),
    ] = "pseudo"
    corrected: Annotated[bool, option("use the masks of `ssr import` in WORK where there are any, with supervision pseudo")] = (
        True
    )
    val_split: Annotated[
        str | None, option("split to validate on (opens its ground truth); the best model on it is kept as best.safetensors")
    ] = None
    validate_every: Annotated[int, Field(ge=0, description="steps between two validations; 0 = only at the end")] = 0
    iterations: Annotated[int, Field(ge=1, description="training steps (WeCLIP, SSR: 30000 VOC, 80000 COCO)")] = 30000
    batch: Annotated[int, Field(ge=1, description="crops per step, over all processes (WeCLIP: 4)")] = 4
    accumulate: Annotated[
        int, Field(ge=1, description="gradient-accumulation steps: micro-batches per step and process, to save memory")
    ] = 1
    crop: Annotated[int, Field(ge=32, description="side of a training crop, pixels; a multiple of CLIP's patch size")] = 320
    min_scale: Annotated[float, Field(gt=0, description="smallest factor of the random rescaling before the crop")] = 0.5
    max_scale: Annotated[float, Field(gt=0, le=4, description="largest factor of the random rescaling before the crop")] = 2.0
    flip: Annotated[bool, option("mirror crops at random, half of them")] = True
    cache_views: Annotated[
        int,
        Field(
            ge=0,
            description="fixed crops of each image that are encoded and labelled once, on disk; 0 = new crops all the time",
        ),
    ] = 0
    cache_limit: Annotated[
        float, Field(gt=0, description="disk space that cache_views may take, GB; more is refused before anything is written")
    ] = 20.0
    clip_layers: Annotated[
        int, Field(ge=0, description="first CLIP blocks whose tokens the decoder reads; 0 = all (WeCLIP: 11)")
    ] = 0
    hidden: Annotated[int, Field(ge=8, description="width of the decoder, channels")] = 256
    decoder_layers: Annotated[int, Field(ge=1, description="transformer layers of the decoder")] = 3
    decoder_heads: Annotated[int, Field(ge=1, description="attention heads per decoder layer; must divide hidden")] = 8
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout rate of the fused channels")] = 0.1
    learning_rate: Annotated[float, Field(gt=0, description="learning rate of the decoder, AdamW (WeCLIP: 2e-3)")] = 2e-3
    heads_learning_rate: Annotated[
        float, Field(gt=0, description="learning rate of the alignment heads with train_heads (SSR: 1e-5)")
    ] = 1e-5
    weight_decay: Annotated[float, Field(ge=0, description="weight decay of AdamW (WeCLIP: 0.01)")] = 0.01
    warmup: Annotated[int, Field(ge=0, description="steps over which the learning rate rises from 0 (WeCLIP: 50)")] = 50
    poly: Annotated[float, Field(gt=0, description="exponent of the polynomial decay of the learning rate (WeCLIP: 1)")] = 1.0
    train_heads: Annotated[
        bool, option("train the alignment heads (--ckpt) together with the decoder: L = L_proto + gamma L_seg (SSR: on)")
    ] = False
    gamma: Annotated[
        float, Field(gt=0, description="weight of the segmentation loss beside L_proto with train_heads (SSR: 0.1)")
    ] = 0.1
    prototype_refresh: Annotated[
        int, Field(ge=1, description="steps between two updates of the prototypes with train_heads (SSR: 5000)")
    ] = 5000
    affinity_loss: Annotated[
        float, Field(ge=0, description="weight of the affinity loss of the decoder; 0 = off (WeCLIP: 0.1)")
    ] = 0.0
    losses: Annotated[
        dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]],
        option(
            "weight of a further loss, NAME=WEIGHT: sbe (borders of super-classes, CD-CLIP: 0.6); plugins add names",
            flag="--loss",
        ),
    ] = Field(default_factory=dict)
    affinity_radius: Annotated[
        int, Field(ge=1, description="distance up to which pairs of patches enter the affinity loss, patches (WeCLIP: 8)")
    ] = 8
    filter_from: Annotated[
        int,
        Field(ge=-1, description="step from which the decoder's affinity selects attention blocks; -1 = never (RFM: 15000)"),
    ] = -1
    filter_blocks: Annotated[int, Field(ge=1, description="last CLIP blocks from which it selects (RFM: 6 VOC, 10 COCO)")] = 6
    filter_difference: Annotated[
        Literal["signed", "absolute"],
        option("difference between a block and that affinity: signed (WeCLIP's code) or absolute (WeCLIP's paper)"),
    ] = "signed"
    par_iterations: Annotated[
        int,
        Field(ge=0, description="iterations of pixel-adaptive refinement (PAR) of the online scores; 0 = none (WeCLIP: 20)"),
    ] = 20
    par_dilations: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1, description="PAR: dilations of the neighbourhood, pixels of the crop"),
    ] = (1, 2, 4, 8, 12, 24)
    par_scale: Annotated[
        float, Field(gt=0, le=1, description="PAR: image scale at which it runs, up to 1 (WeCLIP: 1, AFA: 0.5)")
    ] = 0.5
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="random seed of weights, crops and dropout")] = 0
    save_every: Annotated[int, Field(ge=1, description="steps between two saved training states")] = 500
    resume: Annotated[Literal["auto", "never"], option("auto = continue a stopped training; never = train from the start")] = (
        "auto"
    )


class ModelOptions(Options):
    """First part of ``[predict]``: the model, its photos and its input."""

    model: Annotated[
        Path,
        option(
            "model of `ssr train` (.safetensors) or `ssr onnx` (.onnx); auto = the one in WORK; retrained = the one of"
            " `ssr retrain` in WORK; tags = no model and no labels, class names alone; also alignment heads"
            " (.safetensors; heads = those in WORK)"
        ),
    ] = Path("auto")
    images: Annotated[Path | None, option("folder of images (without subfolders) instead of a split; needs no dataset")] = None
    output: Annotated[
        Path | None,
        option("folder of the PNGs; without it, WORK/predictions/ or WORK/retrained/, then the split's or folder's name"),
    ] = None
    scales: Annotated[
        tuple[Annotated[float, Field(gt=0, le=4)], ...],
        Field(min_length=1, description="image scales whose logits are averaged (WeCLIP: 1.0 0.75)"),
    ] = (1.0, 0.75)
    flip: Annotated[bool, option("average with the logits of the mirrored image")] = True
    long_side: Annotated[
        int,
        Field(
            ge=0, description="longest side of the model's input, pixels; larger images are reduced; 0 = never (WeCLIP: 512)"
        ),
    ] = 512
    probabilities: Annotated[bool, option("also write class probabilities on the model's grid, beside the folder")] = False


class PredictOptions(BoundaryOptions, ModelOptions):
    """``[predict]``: label maps from a trained segmentation model.

    Defaults of the CRF's kernels are those of WeCLIP.
    """

    crf_bilateral_sxy: BilateralSxy = 64.0
    crf_bilateral_srgb: BilateralSrgb = 5.0
    crf_gaussian_sxy: GaussianSxy = 3.0
