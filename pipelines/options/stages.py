"""Options of the stages, one class a section of the config file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.boundary import BoundaryOptions
from pipelines.options.sources import Options, option


class SampleOptions(Options):
    """``[sample]``: the drawn set."""

    train: Annotated[int, Field(ge=1, le=100_000, description="Images of split train.")] = 200
    val: Annotated[int, Field(ge=1, le=100_000, description="Images of split val.")] = 60
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="Random seed of the drawn images.")] = 0


class SuperpixelsOptions(Options):
    """``[superpixels]``: SLIC."""

    segments: Annotated[int, Field(ge=1, le=60000, description="Superpixels requested for each image; SLIC returns fewer.")] = (
        400
    )
    compactness: Annotated[float, Field(gt=0, description="Weight of position against Lab colour.")] = 10.0
    iterations: Annotated[int, Field(ge=1, description="Iterations of SLIC's k-means.")] = 5


class CamsOptions(Options):
    """``[cams]``: softmax-GradCAM on the frozen CLIP."""

    ckpt: Annotated[
        Path | None,
        option("Alignment heads of `ssr align` (.safetensors; auto means those in WORK); without them, plain CLIP."),
    ] = None
    readout: Annotated[
        str,
        option(
            "How a CAM is read: GradCAM of the class softmax (gradcam; CLIP-ES), class softmax of each patch's "
            "value vector (dense), both (mix), dense and its like behind ExCEL's attention (calibrated), or patches "
            "behind the attention of the papers (excel, resclip).",
            choices=("gradcam", "dense", "mix", "calibrated", "excel", "resclip"),
        ),
    ] = "gradcam"
    dense_weight: Annotated[
        float, Field(ge=0, le=1, description="Weight of the dense map in readouts mix and calibrated, from 0 to 1.")
    ] = 0.7
    dense_scale: Annotated[
        float, Field(gt=0, description="Factor of the cosine similarities in the softmax of the dense map (1 / temperature).")
    ] = 50.0
    superpixel_share: Annotated[
        float,
        Field(
            ge=0, le=1, description="Weight of the superpixel mean in each value vector, from 0 to 1; 0 needs no superpixels."
        ),
    ] = 0.5
    excel_blocks: Annotated[
        int, Field(ge=1, description="Read-outs excel and calibrated: last blocks that have a second path (ExCEL: 5).")
    ] = 5
    resclip_share: Annotated[
        float, Field(ge=0, le=1, description="Read-out resclip: weight of the middle blocks' attention (RCS), from 0 to 1.")
    ] = 0.3
    resclip_feedback: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Read-out resclip: weight of regions that a first pass labels (SFR), from 0 to 1; 0 makes one pass.",
        ),
    ] = 0.7
    aligned_readout: Annotated[
        str,
        option(
            "How the CAM through the alignment heads (--ckpt) is read: gradcam, dense or mix, as readout.",
            choices=("gradcam", "dense", "mix"),
        ),
    ] = "dense"
    aligned_dense_weight: Annotated[
        float, Field(ge=0, le=1, description="Weight of the dense map in aligned_readout mix, from 0 to 1.")
    ] = 0.5
    aligned_scale: Annotated[
        float | None,
        Field(
            gt=0,
            description="Factor of the cosine similarities of the alignment heads (--ckpt); without it, 1 / their temperature.",
        ),
    ] = None
    aligned_superpixel_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Weight of the superpixel mean in each projected patch, from 0 to 1; 0 needs no superpixels.",
        ),
    ] = 0.5
    aligned_layer: Annotated[
        Literal["features", "ln_1"],
        option(
            "Where GradCAM through the alignment heads takes its gradient: at the features they read, or at ln_1 "
            "of the last block (SSR)."
        ),
    ] = "features"
    aligned_relu: Annotated[bool, option("Set negative values of GradCAM through the alignment heads to 0 (SSR: on).")] = False
    few_photos: Annotated[
        float,
        Field(
            ge=0,
            description="Pseudo-count k: in a class with n training images, the weight of the aligned CAM is n / (n + k).",
        ),
    ] = 20.0
    min_average_precision: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Classes that the alignment heads rank with a lower average precision use the plain CAM; 0 lets all "
            "use theirs.",
        ),
    ] = 0.0
    scales: Annotated[
        tuple[Annotated[float, Field(gt=0, le=4)], ...],
        Field(min_length=1, description="Scales of the image whose maps are averaged (CLIP-ES: 1.0)."),
    ] = (1.0,)
    flip: Annotated[bool, option("Average with the map of the mirrored image.")] = False


class PropagationOptions(Options):
    """First part of ``[refine]``: affinity, masks, propagation, background rule."""

    clip_blocks: Annotated[
        int, Field(ge=0, description="Last CLIP blocks whose attention is averaged; 0 leaves CLIP out (CLIP-ES: 8).")
    ] = 8
    dino_blocks: Annotated[int, Field(ge=0, description="Last DINO blocks whose attention is averaged; 0 leaves DINO out.")] = 1
    dino_weight: Annotated[
        float,
        Field(ge=0, le=1, description="Weight of DINO in the fused attention, from 0 to 1; CLIP has the rest (SSR: 0.6)."),
    ] = 0.6
    affinity: Annotated[
        str,
        option(
            "How the fused attention is normalised: row makes its rows sum to 1, sinkhorn rows and columns (CLIP-ES).",
            choices=("row", "sinkhorn"),
        ),
    ] = "row"
    sinkhorn_rounds: Annotated[int, Field(ge=1, description="Rounds of column and row normalisation (CLIP-ES: 3).")] = 3
    symmetrise: Annotated[bool, option("Average the affinity with its transpose (CLIP-ES: on).")] = False
    affinity_filter: Annotated[
        str,
        option(
            "Filter of the affinity: cda weighs pairs of patches by how alike their distributions over classes "
            "and super-classes are (CD-CLIP); none keeps all pairs as they are.",
            choices=("none", "cda"),
        ),
    ] = "none"
    cda_features: Annotated[
        Literal["output", "value"],
        option("Patches that cda compares with the class names: the output of CLIP's last block, or its value path."),
    ] = "value"
    cda_scale: Annotated[
        float, Field(gt=0, description="Filter cda: factor of the cosines, scaled to [0, 1], in the softmax.")
    ] = 1.0
    cda_kappa: Annotated[
        float, Field(gt=0, description="Filter cda: temperature in units of the photo's median divergence; lower is stricter.")
    ] = 10.0
    cda_tau: Annotated[float | None, Field(gt=0, description="Filter cda: fixed temperature, which overrides cda_kappa.")] = (
        None
    )
    cda_product: Annotated[
        Literal["elementwise", "matrix"],
        option("Filter cda: how weights and affinity are multiplied, elementwise or as matrix, which CD-CLIP writes."),
    ] = "elementwise"
    power: Annotated[int, Field(ge=1, description="Propagation steps: the exponent of the affinity (CLIP-ES: 2).")] = 2
    box_mask: Annotated[bool, option("Keep source columns only in boxes around regions of high activation (CLIP-ES: on).")] = (
        False
    )
    box_threshold: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Share of the maximum activation from which a patch belongs to a region (CLIP-ES: 0.4 for VOC, 0.7 "
            "for COCO).",
        ),
    ] = 0.4
    superpixel_mask: Annotated[
        str,
        option(
            "Patches that may pass activation on: those of active superpixels (gate), of these and their clusters"
            " in DINO's features (cluster), of SGC's colours (colour; SSR), active patches (token), or all "
            "(none).",
            choices=("none", "colour", "gate", "cluster", "token"),
        ),
    ] = "none"
    mask_threshold: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Mean activation above which a patch may pass activation on; with colour, a share of the class's "
            "total activation.",
        ),
    ] = 0.2
    clusters: Annotated[
        int,
        Field(
            ge=1,
            description="Number k of clusters in the k-means over superpixels, of their colours (colour) or DINO features "
            "(cluster).",
        ),
    ] = 24
    colour_high: Annotated[
        float, Field(ge=0, lt=1, description="With superpixel_mask colour: activation above which a patch is high-confidence.")
    ] = 0.3
    mask_every_step: Annotated[bool, option("Mask before every propagation step; when off, before the first only.")] = False
    background_power: Annotated[float, Field(gt=0, description="Exponent p of the background score (1 - max cam)^p.")] = 1.0


class RefineOptions(BoundaryOptions, PropagationOptions):
    """``[refine]``: affinity, masks, propagation, label map, boundary refinement."""

    boundary_background_power: Annotated[
        float | None,
        Field(
            gt=0, description="Exponent p of the background score before a boundary refinement; without it, background_power."
        ),
    ] = None
    min_confidence: Annotated[
        float,
        Field(
            ge=0, le=1, description="Pixels whose best class has a smaller share of the score become 255 (ignore); 0 keeps all."
        ),
    ] = 0.0
    probabilities: Annotated[
        Path | None,
        option(
            "Class probabilities of a trained model that are mixed into the scores of the masks: a store of `ssr "
            "predict --probabilities` (.h5); auto is that of the split in WORK."
        ),
    ] = None
    probability_weight: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Largest share of these probabilities in the scores: it is multiplied with the agreement of model and "
            "CAMs in the image (mean IoU); the CAMs have the rest.",
        ),
    ] = 0.3


class EvalOptions(Options):
    """``[eval]``: scoring against ground truth."""

    background_power: Annotated[
        float | None,
        Field(
            gt=0, description="Exponent p of the background score for cams and refined; without it, refine.background_power."
        ),
    ] = None
    oracle: Annotated[
        bool, option("Also report the best p of 1 to 10, chosen on the ground truth: an upper bound, not a result.")
    ] = False
    mask_folder: Annotated[Path | None, option("Folder of ground-truth PNGs; without it, that of the dataset.")] = None
    images: Annotated[Path | None, option("Score only the ids in this .txt (one on each line).")] = None
    pictures: Annotated[bool, option("Draw the confusion matrix and the bars of each class.")] = True


class ShowOptions(Options):
    """``[show]``: pictures."""

    count: Annotated[int, Field(ge=1, description="Images to show, evenly spaced over the split.")] = 24
    ids: Annotated[str, option("Ids of the images to show, separated by commas; they override --count.")] = ""
    gt: Annotated[bool, option("Add the ground-truth mask (opens it).")] = False
    height: Annotated[int, Field(ge=64, le=1024, description="Height of a panel, in pixels.")] = 240
    columns: Annotated[int, Field(ge=1, le=8, description="Panels in a row of the contact sheet.")] = 1
    projection: Annotated[Literal["tsne", "pca"], option("How `show features` projects to two dimensions: tsne or pca.")] = (
        "tsne"
    )
