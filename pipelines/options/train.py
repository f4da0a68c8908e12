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
        option(
            "Alignment heads of `ssr align` for the CAMs (.safetensors; auto means those in WORK); without them, plain CLIP."
        ),
    ] = None
    supervision: Annotated[
        Literal["pseudo", "masks"],
        option(
            "What the decoder learns from: pseudo-masks that are made online from image-level labels (pseudo), or"
            " ground truth (masks; opens it), which gives the upper bound."
        ),
    ] = "pseudo"
    corrected: Annotated[
        bool, option("Use the masks of `ssr import` in WORK where there are any, with supervision pseudo.")
    ] = True
    val_split: Annotated[
        str | None, option("Split to validate on (opens its ground truth); the best model on it is kept as best.safetensors.")
    ] = None
    validate_every: Annotated[int, Field(ge=0, description="Steps between two validations; 0 validates only at the end.")] = 0
    iterations: Annotated[int, Field(ge=1, description="Training steps (WeCLIP, SSR: 30000 for VOC, 80000 for COCO).")] = 30000
    batch: Annotated[int, Field(ge=1, description="Crops in a step, over all processes (WeCLIP: 4).")] = 4
    accumulate: Annotated[
        int, Field(ge=1, description="Micro-batches that make a step of each process (gradient accumulation), to save memory.")
    ] = 1
    crop: Annotated[int, Field(ge=32, description="Side of a training crop, in pixels; a multiple of CLIP's patch size.")] = 320
    min_scale: Annotated[float, Field(gt=0, description="Smallest factor of the random rescaling before the crop.")] = 0.5
    max_scale: Annotated[float, Field(gt=0, le=4, description="Largest factor of the random rescaling before the crop.")] = 2.0
    flip: Annotated[bool, option("Mirror half of the crops, at random.")] = True
    cache_views: Annotated[
        int,
        Field(
            ge=0,
            description="Fixed crops of each image that are encoded and labelled once, on disk; 0 takes new crops all the "
            "time.",
        ),
    ] = 0
    cache_limit: Annotated[
        float,
        Field(gt=0, description="Disk space that cache_views may take, in GB; more is refused before anything is written."),
    ] = 20.0
    clip_layers: Annotated[
        int, Field(ge=0, description="First CLIP blocks whose tokens the decoder reads; 0 means all (WeCLIP: 11).")
    ] = 0
    text_classifier: Annotated[
        bool,
        option(
            "Add the class scores of the alignment heads (--ckpt) to the decoder's, so that rare classes are not learned from "
            "nothing; without --ckpt there are none."
        ),
    ] = False
    hidden: Annotated[int, Field(ge=8, description="Width of the decoder, in channels.")] = 256
    decoder_layers: Annotated[int, Field(ge=1, description="Transformer layers of the decoder.")] = 3
    decoder_heads: Annotated[
        int, Field(ge=1, description="Attention heads in each layer of the decoder; they must divide hidden.")
    ] = 8
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout rate of the fused channels.")] = 0.1
    learning_rate: Annotated[float, Field(gt=0, description="Learning rate of the decoder for AdamW (WeCLIP: 2e-3).")] = 2e-3
    heads_learning_rate: Annotated[
        float, Field(gt=0, description="Learning rate of the alignment heads with train_heads (SSR: 1e-5).")
    ] = 1e-5
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay of AdamW (WeCLIP: 0.01).")] = 0.01
    warmup: Annotated[int, Field(ge=0, description="Steps over which the learning rate rises from 0 (WeCLIP: 50).")] = 50
    poly: Annotated[float, Field(gt=0, description="Exponent of the polynomial decay of the learning rate (WeCLIP: 1).")] = 1.0
    train_heads: Annotated[
        bool, option("Train the alignment heads (--ckpt) together with the decoder: L = L_proto + gamma L_seg (SSR: on).")
    ] = False
    gamma: Annotated[
        float, Field(gt=0, description="Weight of the segmentation loss beside L_proto with train_heads (SSR: 0.1).")
    ] = 0.1
    prototype_refresh: Annotated[
        int, Field(ge=1, description="Steps between two updates of the prototypes with train_heads (SSR: 5000).")
    ] = 5000
    affinity_loss: Annotated[
        float, Field(ge=0, description="Weight of the affinity loss of the decoder; 0 turns it off (WeCLIP: 0.1).")
    ] = 0.0
    losses: Annotated[
        dict[str, Annotated[float, Field(ge=0)]],
        option(
            "Weight of a further loss, NAME=WEIGHT: sbe is for borders of super-classes (CD-CLIP: 0.6), and plugins add names.",
            flag="--loss",
        ),
    ] = Field(default_factory=dict)
    affinity_radius: Annotated[
        int, Field(ge=1, description="Distance up to which pairs of patches enter the affinity loss, in patches (WeCLIP: 8).")
    ] = 8
    filter_from: Annotated[
        int,
        Field(
            ge=-1, description="Step from which the decoder's affinity selects attention blocks; -1 means never (RFM: 15000)."
        ),
    ] = -1
    filter_blocks: Annotated[
        int, Field(ge=1, description="Last CLIP blocks from which it selects (RFM: 6 for VOC, 10 for COCO).")
    ] = 6
    filter_difference: Annotated[
        Literal["signed", "absolute"],
        option("Difference between a block and that affinity: signed (WeCLIP's code) or absolute (WeCLIP's paper)."),
    ] = "signed"
    par_iterations: Annotated[
        int,
        Field(ge=0, description="PAR: passes over the online scores; 0 makes none (WeCLIP: 20)."),
    ] = 20
    par_dilations: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1, description="PAR: distances of the neighbours, in pixels of the crop."),
    ] = (1, 2, 4, 8, 12, 24)
    par_scale: Annotated[
        float,
        Field(gt=0, le=1, description="PAR: share of the image's resolution at which it runs, up to 1 (WeCLIP: 1, AFA: 0.5)."),
    ] = 0.5
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="Random seed of weights, crops and dropout.")] = 0
    save_every: Annotated[int, Field(ge=1, description="Steps between two saved training states.")] = 500
    resume: Annotated[
        Literal["auto", "never"], option("What to do with a stopped training: auto continues it, never trains from the start.")
    ] = "auto"


class ModelOptions(Options):
    """First part of ``[predict]``: the model, its photos and its input."""

    model: Annotated[
        Path,
        option(
            "Model: a file of `ssr train` (.safetensors) or `ssr onnx` (.onnx); auto means the one in WORK, "
            "retrained that of `ssr retrain` in WORK, tags no model and no labels, class names alone; alignment "
            "heads are taken too (.safetensors, or heads for those in WORK)."
        ),
    ] = Path("auto")
    images: Annotated[
        Path | None, option("Folder of images (without subfolders) instead of a split; no dataset is needed.")
    ] = None
    output: Annotated[
        Path | None,
        option(
            "Folder of the PNGs; without it, WORK/predictions/ or WORK/retrained/, and in it the name of the split or folder."
        ),
    ] = None
    scales: Annotated[
        tuple[Annotated[float, Field(gt=0, le=4)], ...],
        Field(min_length=1, description="Scales of the image whose logits are averaged (WeCLIP: 1.0 0.75)."),
    ] = (1.0, 0.75)
    flip: Annotated[bool, option("Average with the logits of the mirrored image.")] = True
    long_side: Annotated[
        int,
        Field(
            ge=0,
            description="Longest side of the model's input, in pixels; larger images are reduced, and 0 reduces none (WeCLIP:"
            " 512).",
        ),
    ] = 512
    probabilities: Annotated[bool, option("Also write class probabilities on the model's grid, beside the folder.")] = False


class PredictOptions(BoundaryOptions, ModelOptions):
    """``[predict]``: label maps from a trained segmentation model.

    Defaults of the CRF's kernels are those of WeCLIP.
    """

    crf_bilateral_sxy: BilateralSxy = 64.0
    crf_bilateral_srgb: BilateralSrgb = 5.0
    crf_gaussian_sxy: GaussianSxy = 3.0
