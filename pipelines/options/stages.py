"""Options of the stages, one class a section of the config file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.boundary import BoundaryOptions
from pipelines.options.sources import Options, option


class SampleOptions(Options):
    """``[sample]``: the drawn set."""

    train: Annotated[int, Field(ge=1, le=100_000, description="images of split train")] = 200
    val: Annotated[int, Field(ge=1, le=100_000, description="images of split val")] = 60
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="random seed of the drawn images")] = 0


class SuperpixelsOptions(Options):
    """``[superpixels]``: SLIC."""

    segments: Annotated[int, Field(ge=1, le=60000, description="superpixels requested per image; SLIC returns fewer")] = 400
    compactness: Annotated[float, Field(gt=0, description="weight of position against Lab colour")] = 10.0
    iterations: Annotated[int, Field(ge=1, description="iterations of SLIC's k-means")] = 5


class CamsOptions(Options):
    """``[cams]``: softmax-GradCAM on the frozen CLIP."""

    ckpt: Annotated[
        Path | None, option("alignment heads of `ssr align` (.safetensors; auto = those in WORK); without it, plain CLIP")
    ] = None
    readout: Annotated[
        str,
        option(
            "gradcam = GradCAM of the class softmax (CLIP-ES); dense = class softmax of each patch's value vector; mix = both;"
            " excel, resclip = patches behind the attention of these papers",
            choices=("gradcam", "dense", "mix", "excel", "resclip"),
        ),
    ] = "gradcam"
    dense_weight: Annotated[float, Field(ge=0, le=1, description="weight of the dense map in readout mix, 0 to 1")] = 0.7
    dense_scale: Annotated[
        float, Field(gt=0, description="factor of the cosine similarities in the softmax of the dense map (1 / temperature)")
    ] = 50.0
    superpixel_share: Annotated[
        float,
        Field(ge=0, le=1, description="weight of the superpixel mean in each value vector, 0 to 1; 0 needs no superpixels"),
    ] = 0.5
    excel_blocks: Annotated[int, Field(ge=1, description="excel: last blocks with a second path (ExCEL: 5)")] = 5
    resclip_share: Annotated[
        float, Field(ge=0, le=1, description="resclip: weight of the middle blocks' attention (RCS), 0 to 1")
    ] = 0.3
    resclip_feedback: Annotated[
        float,
        Field(ge=0, lt=1, description="resclip: weight of regions that a first pass labels (SFR), 0 to 1; 0 = one pass"),
    ] = 0.7
    aligned_readout: Annotated[
        str,
        option("read-out of the CAM through the alignment heads (--ckpt), as readout", choices=("gradcam", "dense", "mix")),
    ] = "dense"
    aligned_dense_weight: Annotated[
        float, Field(ge=0, le=1, description="weight of the dense map in aligned_readout mix, 0 to 1")
    ] = 0.5
    aligned_scale: Annotated[
        float | None,
        Field(
            gt=0,
            description="factor of the cosine similarities of the alignment heads (--ckpt); without it, 1 / their temperature",
        ),
    ] = None
    aligned_superpixel_share: Annotated[
        float,
        Field(ge=0, le=1, description="weight of the superpixel mean in each projected patch, 0 to 1; 0 needs no superpixels"),
    ] = 0.5
    aligned_layer: Annotated[
        Literal["features", "ln_1"],
        option(
            "gradient of GradCAM through the alignment heads: at the features they read, or at ln_1 of the last block (SSR)"
        ),
    ] = "features"
    aligned_relu: Annotated[bool, option("set negative values of GradCAM through the alignment heads to 0 (SSR: on)")] = False
    few_photos: Annotated[
        float,
        Field(
            ge=0,
            description="pseudo-count k: weight of the aligned CAM is n / (n + k) for a class with n training images",
        ),
    ] = 20.0
    min_average_precision: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="classes that the alignment heads rank with a lower average precision use the plain CAM; 0 = none",
        ),
    ] = 0.0
    scales: Annotated[
        tuple[Annotated[float, Field(gt=0, le=4)], ...],
        Field(min_length=1, description="image scales whose maps are averaged (CLIP-ES: 1.0)"),
    ] = (1.0,)
    flip: Annotated[bool, option("average with the map of the mirrored image")] = False


class PropagationOptions(Options):
    """First part of ``[refine]``: affinity, masks, propagation, background rule."""

    clip_blocks: Annotated[
        int, Field(ge=0, description="last CLIP blocks whose attention is averaged; 0 = none (CLIP-ES: 8)")
    ] = 8
    dino_blocks: Annotated[int, Field(ge=0, description="last DINO blocks whose attention is averaged; 0 = none")] = 1
    dino_weight: Annotated[
        float, Field(ge=0, le=1, description="weight of DINO in the fused attention, 0 to 1; CLIP has the rest (SSR: 0.6)")
    ] = 0.6
    affinity: Annotated[
        str,
        option(
            "row = rows of the fused attention sum to 1; sinkhorn = rows and columns do (CLIP-ES)", choices=("row", "sinkhorn")
        ),
    ] = "row"
    sinkhorn_rounds: Annotated[int, Field(ge=1, description="rounds of column and row normalisation (CLIP-ES: 3)")] = 3
    symmetrise: Annotated[bool, option("average the affinity with its transpose (CLIP-ES: on)")] = False
    affinity_filter: Annotated[
        str,
        option(
            "cda = weigh pairs of patches by how alike their distributions over classes and super-classes are (CD-CLIP)",
            choices=("none", "cda"),
        ),
    ] = "none"
    cda_features: Annotated[
        Literal["output", "value"],
        option("patches that cda compares with the class names: output of CLIP's last block, or its value path"),
    ] = "value"
    cda_scale: Annotated[float, Field(gt=0, description="cda: factor of the cosines, scaled to [0, 1], in the softmax")] = 1.0
    cda_kappa: Annotated[
        float, Field(gt=0, description="cda: temperature in units of the photo's median divergence; lower is stricter")
    ] = 10.0
    cda_tau: Annotated[float | None, Field(gt=0, description="cda: fixed temperature; overrides cda_kappa")] = None
    cda_product: Annotated[
        Literal["elementwise", "matrix"], option("cda: how weights and affinity are multiplied; CD-CLIP writes matrix")
    ] = "elementwise"
    power: Annotated[int, Field(ge=1, description="propagation steps, i.e. exponent of the affinity (CLIP-ES: 2)")] = 2
    box_mask: Annotated[bool, option("keep source columns only in boxes around regions of high activation (CLIP-ES: on)")] = (
        False
    )
    box_threshold: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of the maximum activation from which a patch belongs to a region (CLIP-ES: 0.4 VOC, 0.7 COCO)",
        ),
    ] = 0.4
    superpixel_mask: Annotated[
        str,
        option(
            "columns kept: colour = SGC (SSR); gate = superpixels; cluster = superpixels and DINO clusters; token = patches",
            choices=("none", "colour", "gate", "cluster", "token"),
        ),
    ] = "none"
    mask_threshold: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="mean activation above which a column is kept; colour: share of the class's total activation",
        ),
    ] = 0.2
    clusters: Annotated[
        int,
        Field(
            ge=1, description="number k of clusters in the k-means over superpixels (colour: colours; cluster: DINO features)"
        ),
    ] = 24
    colour_high: Annotated[
        float, Field(ge=0, lt=1, description="superpixel_mask colour: activation above which a patch is high-confidence")
    ] = 0.3
    mask_every_step: Annotated[bool, option("mask before every propagation step; off = before the first only")] = False
    background_power: Annotated[float, Field(gt=0, description="exponent p of the background score (1 - max cam)^p")] = 1.0


class RefineOptions(BoundaryOptions, PropagationOptions):
    """``[refine]``: affinity, masks, propagation, label map, boundary refinement."""

    boundary_background_power: Annotated[
        float | None,
        Field(
            gt=0, description="exponent p of the background score before a boundary refinement; without it, background_power"
        ),
    ] = None
    min_confidence: Annotated[
        float,
        Field(ge=0, le=1, description="pixels whose best class has a smaller share of the score become 255 (ignore); 0 = off"),
    ] = 0.0


class EvalOptions(Options):
    """``[eval]``: scoring against ground truth."""

    background_power: Annotated[
        float | None,
        Field(gt=0, description="exponent p of the background score for cams and refined; without it, refine.background_power"),
    ] = None
    oracle: Annotated[
        bool, option("also report the best p of 1 to 10, chosen on the ground truth: an upper bound, not a result")
    ] = False
    mask_folder: Annotated[Path | None, option("folder of ground-truth PNGs; without it, that of the dataset")] = None
    images: Annotated[Path | None, option("score only the ids in this .txt (one per line)")] = None
    pictures: Annotated[bool, option("draw the confusion matrix and the bars of each class")] = True


class ShowOptions(Options):
    """``[show]``: pictures."""

    count: Annotated[int, Field(ge=1, description="images to show, evenly spaced over the split")] = 24
    ids: Annotated[str, option("image ids to show, separated by commas; overrides --count")] = ""
    gt: Annotated[bool, option("add the ground-truth mask (opens it)")] = False
    height: Annotated[int, Field(ge=64, le=1024, description="height of a panel, pixels")] = 240
    columns: Annotated[int, Field(ge=1, le=8, description="panels per row of the contact sheet")] = 1
    projection: Annotated[Literal["tsne", "pca"], option("show features: projection to two dimensions")] = "tsne"
