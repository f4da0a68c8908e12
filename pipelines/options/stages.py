"""Options of the stages, one class a section of the config file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.sources import Options, option


class SampleOptions(Options):
    """``[sample]``: the drawn set."""

    train: Annotated[int, Field(ge=1, le=100_000, description="pictures of split train")] = 200
    val: Annotated[int, Field(ge=1, le=100_000, description="pictures of split val")] = 60
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="another seed draws another set")] = 0


class SuperpixelsOptions(Options):
    """``[superpixels]``: SLIC."""

    segments: Annotated[int, Field(ge=1, le=60000, description="superpixels asked for; SLIC returns fewer")] = 400
    compactness: Annotated[float, Field(gt=0, description="weight of place against Lab colour")] = 10.0
    iterations: Annotated[int, Field(ge=1, description="rounds of SLIC's k-means")] = 10


class CamsOptions(Options):
    """``[cams]``: softmax-GradCAM on the frozen CLIP."""

    ckpt: Annotated[
        Path | None, option("alignment heads of `ssr align` (.safetensors; auto = those in WORK); plain CLIP without")
    ] = None
    readout: Annotated[
        Literal["gradcam", "dense", "mix"],
        option("gradcam = CLIP-ES; dense = class probabilities of each patch's value vector; mix = both"),
    ] = "gradcam"
    dense_weight: Annotated[float, Field(ge=0, le=1, description="share of the dense map in readout mix")] = 0.7
    dense_scale: Annotated[float, Field(gt=0, description="scale of the cosines in the dense map's softmax")] = 50.0
    superpixel_share: Annotated[
        float, Field(ge=0, le=1, description="share of the superpixel's mean in each value vector; 0 needs no superpixels")
    ] = 0.5
    aligned_readout: Annotated[
        Literal["gradcam", "dense", "mix"], option("the same choice for the CAM through alignment heads (--ckpt)")
    ] = "dense"
    aligned_dense_weight: Annotated[float, Field(ge=0, le=1, description="share of the dense map in aligned_readout mix")] = 0.5
    aligned_scale: Annotated[
        float | None, Field(gt=0, description="scale of the cosines behind the heads; default: 1 / the trained temperature")
    ] = None
    aligned_superpixel_share: Annotated[
        float, Field(ge=0, le=1, description="share of the superpixel's mean in each projected patch; 0 needs no superpixels")
    ] = 0.5
    aligned_layer: Annotated[
        Literal["features", "ln_1"],
        option("GradCAM through the heads takes its gradient at the features they read, or at ln_1 of the last block (SSR)"),
    ] = "features"
    aligned_relu: Annotated[bool, option("cut the negative part of GradCAM through the heads off (SSR does)")] = False
    few_photos: Annotated[
        float,
        Field(
            ge=0, description="training photos that make a class's CAM half aligned, half plain CLIP; with fewer the plain wins"
        ),
    ] = 20.0
    min_average_precision: Annotated[
        float,
        Field(
            ge=0, le=1, description="classes whose training photos the heads rank worse than this keep the plain CAM; 0 = none"
        ),
    ] = 0.0
    scales: Annotated[
        tuple[Annotated[float, Field(gt=0, le=4)], ...],
        Field(min_length=1, description="resolution factors whose maps are averaged; CLIP-ES uses 1.0 alone"),
    ] = (1.0,)
    flip: Annotated[bool, option("average with the mirrored photo's map")] = False


class RefineOptions(Options):
    """``[refine]``: affinity, masks, propagation, label map, CRF."""

    clip_blocks: Annotated[
        int, Field(ge=0, description="last CLIP blocks whose attention is averaged, 0 = none (CLIP-ES: 8)")
    ] = 8
    dino_blocks: Annotated[int, Field(ge=0, description="last DINO blocks whose attention is averaged, 0 = none")] = 1
    dino_weight: Annotated[float, Field(ge=0, le=1, description="share of DINO in the fused attention (SSR: 0.6)")] = 0.6
    normalise: Annotated[Literal["row", "sinkhorn"], option("normalisation of the fused attention")] = "row"
    sinkhorn_rounds: Annotated[int, Field(ge=1, description="column-then-row rounds (CLIP-ES: 3)")] = 3
    symmetrise: Annotated[bool, option("average the affinity with its transpose (CLIP-ES does)")] = False
    power: Annotated[int, Field(ge=1, description="propagation steps (CLIP-ES: 2)")] = 2
    box_mask: Annotated[bool, option("keep source columns inside boxes around strong regions (CLIP-ES)")] = False
    box_threshold: Annotated[
        float, Field(ge=0, lt=1, description="share of the maximum that makes a region (CLIP-ES: 0.4 VOC, 0.7 COCO)")
    ] = 0.4
    superpixel_mask: Annotated[
        Literal["none", "colour", "gate", "cluster", "token"],
        option(
            "source columns kept: colour = SGC as written; gate = active superpixels; cluster = and clusters; token = patches"
        ),
    ] = "none"
    mask_threshold: Annotated[
        float, Field(ge=0, lt=1, description="mean activation needed; colour: share of a class's activation")
    ] = 0.2
    clusters: Annotated[
        int, Field(ge=1, description="k of the k-means over superpixels: their colours, or their DINO features")
    ] = 24
    colour_high: Annotated[float, Field(ge=0, lt=1, description="colour: activation that counts as high-confidence")] = 0.3
    mask_every_step: Annotated[bool, option("mask before every propagation step instead of the first only")] = False
    background_power: Annotated[float, Field(gt=0, description="exponent p of the background score (1 - max cam)^p")] = 1.0
    crf: Annotated[bool, option("dense CRF over the image's own classes")] = False
    crf_background_power: Annotated[
        float | None, Field(gt=0, description="exponent p of the background score given to the CRF; default: background_power")
    ] = None
    crf_iterations: Annotated[int, Field(ge=1, description="mean-field steps")] = 10
    crf_bilateral_sxy: Annotated[float, Field(gt=0, description="spatial width of the appearance kernel, pixels")] = 67.0
    crf_bilateral_srgb: Annotated[float, Field(gt=0, description="colour width of the appearance kernel, grey levels")] = 3.0
    crf_bilateral_compat: Annotated[float, Field(ge=0, description="weight of the appearance kernel")] = 4.0
    crf_gaussian_sxy: Annotated[float, Field(gt=0, description="width of the smoothness kernel, pixels")] = 1.0
    crf_gaussian_compat: Annotated[float, Field(ge=0, description="weight of the smoothness kernel")] = 3.0
    min_confidence: Annotated[
        float, Field(ge=0, le=1, description="pixels whose best class holds less than this share become 255; 0 = off")
    ] = 0.0


class EvalOptions(Options):
    """``[eval]``: scoring against ground truth."""

    background_power: Annotated[
        float | None, Field(gt=0, description="exponent p for cams and refined; default: the recipe's refine.background_power")
    ] = None
    oracle: Annotated[bool, option("also choose p in 1..10 on the ground truth: an upper bound, never a result")] = False
    mask_folder: Annotated[Path | None, option("ground-truth PNGs; default: the dataset's own")] = None
    images: Annotated[Path | None, option("score only the ids of this .txt (one a line)")] = None
    pictures: Annotated[bool, option("draw the confusion matrix and the per-class bars")] = True


class ShowOptions(Options):
    """``[show]``: pictures."""

    count: Annotated[int, Field(ge=1, description="photos to show, evenly spread over the split")] = 24
    ids: Annotated[str, option("image ids to show, separated by commas, instead of --count")] = ""
    gt: Annotated[bool, option("add the ground-truth mask (opens it)")] = False
    height: Annotated[int, Field(ge=64, le=1024, description="height of a panel, pixels")] = 240
    columns: Annotated[int, Field(ge=1, le=8, description="panels side by side on the contact sheet")] = 1
    projection: Annotated[Literal["tsne", "pca"], option("features: how they are laid out in the plane")] = "tsne"
