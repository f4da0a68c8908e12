"""Options of ``[train]`` and ``[predict]``: the segmentation model on the frozen CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.sources import Options, option


class TrainOptions(Options):
    """``[train]``: a segmentation decoder on the frozen CLIP, from pseudo-masks made on line."""

    ckpt: Annotated[
        Path | None, option("alignment heads for the CAMs (.safetensors; auto = those in WORK); plain CLIP without")
    ] = None
    supervision: Annotated[
        Literal["pseudo", "masks"],
        option("pseudo = labels made on line from image-level labels; masks = ground truth (opens it): the upper bound"),
    ] = "pseudo"
    val_split: Annotated[
        str | None, option("split to validate on (opens its ground truth), which also chooses best.safetensors")
    ] = None
    validate_every: Annotated[int, Field(ge=0, description="steps between two validations, 0 = at the end only")] = 0
    iterations: Annotated[int, Field(ge=1, description="steps (WeCLIP, SSR: 30000 VOC, 80000 COCO)")] = 30000
    batch: Annotated[int, Field(ge=1, description="crops a step, over all processes (WeCLIP: 4)")] = 4
    accumulate: Annotated[int, Field(ge=1, description="parts that a process takes its crops of a step in, to save memory")] = 1
    crop: Annotated[int, Field(ge=32, description="side of a crop, pixels; a multiple of CLIP's patch")] = 320
    min_scale: Annotated[float, Field(gt=0, description="smallest random resolution factor before the crop")] = 0.5
    max_scale: Annotated[float, Field(gt=0, le=4, description="largest random resolution factor before the crop")] = 2.0
    flip: Annotated[bool, option("mirror every other crop")] = True
    clip_layers: Annotated[
        int, Field(ge=0, description="first CLIP blocks whose tokens the decoder reads, 0 = all (WeCLIP: 11)")
    ] = 0
    hidden: Annotated[int, Field(ge=8, description="width of the decoder")] = 256
    decoder_layers: Annotated[int, Field(ge=1, description="transformer layers of the decoder")] = 3
    decoder_heads: Annotated[int, Field(ge=1, description="attention heads of each; must divide hidden")] = 8
    dropout: Annotated[float, Field(ge=0, lt=1, description="share of the fused channels dropped")] = 0.1
    learning_rate: Annotated[float, Field(gt=0, description="of the decoder, AdamW (WeCLIP: 2e-3)")] = 2e-3
    heads_learning_rate: Annotated[float, Field(gt=0, description="of the alignment heads, with train_heads (SSR: 1e-5)")] = (
        1e-5
    )
    weight_decay: Annotated[float, Field(ge=0, description="of AdamW (WeCLIP: 0.01)")] = 0.01
    warmup: Annotated[int, Field(ge=0, description="steps over which the learning rate rises from 0 (WeCLIP: 50)")] = 50
    poly: Annotated[float, Field(gt=0, description="exponent of the learning rate's decay to 0 (WeCLIP: 1)")] = 1.0
    train_heads: Annotated[bool, option("go on training the alignment heads of --ckpt: L = L_proto + gamma L_seg (SSR)")] = (
        False
    )
    gamma: Annotated[float, Field(gt=0, description="weight of the segmentation loss beside L_proto (SSR: 0.1)")] = 0.1
    prototype_refresh: Annotated[int, Field(ge=1, description="steps between two refreshes of the prototypes (SSR: 5000)")] = (
        5000
    )
    affinity_loss: Annotated[float, Field(ge=0, description="weight of the decoder's affinity loss (WeCLIP: 0.1)")] = 0.0
    affinity_radius: Annotated[int, Field(ge=1, description="patches within which pairs count there (WeCLIP: 8)")] = 8
    filter_from: Annotated[
        int, Field(ge=-1, description="step from which the decoder's affinity filters attention, -1 = never (RFM: 15000)")
    ] = -1
    filter_blocks: Annotated[int, Field(ge=1, description="last CLIP blocks that it chooses from (RFM: 6 VOC, 10 COCO)")] = 6
    filter_difference: Annotated[
        Literal["signed", "absolute"], option("how blocks differ from it: signed as in WeCLIP's code, absolute as in its paper")
    ] = "signed"
    par_iterations: Annotated[
        int, Field(ge=0, description="steps of pixel-adaptive refinement of the on-line scores, 0 = none (WeCLIP: 20)")
    ] = 20
    par_dilations: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, description="its neighbour distances, pixels")
    ] = (1, 2, 4, 8, 12, 24)
    par_scale: Annotated[float, Field(gt=0, le=1, description="resolution factor at which it runs (WeCLIP: 1, AFA: 0.5)")] = 1.0
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="of weights, crops and dropout")] = 0
    save_every: Annotated[int, Field(ge=1, description="steps between two saves of the state")] = 500
    resume: Annotated[Literal["auto", "never"], option("go on where a stopped training was, or train from the start")] = "auto"


class PredictOptions(Options):
    """``[predict]``: label maps from a trained segmentation model."""

    model: Annotated[Path, option("model of `ssr train` (.safetensors); auto = the one in WORK")] = Path("auto")
    images: Annotated[
        Path | None, option("any folder of photos (not its subfolders), instead of the split; needs no dataset")
    ] = None
    output: Annotated[
        Path | None,
        option("folder of the PNGs; default: WORK/predictions/ or WORK/retrained/, then SPLIT or the photos' folder"),
    ] = None
    scales: Annotated[
        tuple[Annotated[float, Field(gt=0, le=4)], ...],
        Field(min_length=1, description="resolution factors whose logits are averaged (WeCLIP: 1.0 0.75)"),
    ] = (1.0, 0.75)
    flip: Annotated[bool, option("average with the mirrored photo's logits")] = True
    long_side: Annotated[
        int, Field(ge=0, description="longer side that larger photos are reduced to for the model, 0 = never (WeCLIP: 512)")
    ] = 512
    probabilities: Annotated[bool, option("also write class probabilities, on the model's grid, beside the folder")] = False
    crf: Annotated[bool, option("dense CRF over the classes found in the photo")] = False
    crf_iterations: Annotated[int, Field(ge=1, description="mean-field steps")] = 10
    crf_bilateral_sxy: Annotated[float, Field(gt=0, description="spatial width of the appearance kernel, pixels")] = 64.0
    crf_bilateral_srgb: Annotated[float, Field(gt=0, description="colour width of the appearance kernel, grey levels")] = 5.0
    crf_bilateral_compat: Annotated[float, Field(ge=0, description="weight of the appearance kernel")] = 4.0
    crf_gaussian_sxy: Annotated[float, Field(gt=0, description="width of the smoothness kernel, pixels")] = 3.0
    crf_gaussian_compat: Annotated[float, Field(ge=0, description="weight of the smoothness kernel")] = 3.0
