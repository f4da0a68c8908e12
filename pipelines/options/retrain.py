"""Options of ``[retrain]``: a standard segmentation network on mmsegmentation, from pseudo-masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.options.sources import Options, option

NETWORKS = ("deeplabv3plus", "segformer", "upernet")
"""Networks that need no config file."""


class RetrainOptions(Options):
    """``[retrain]``: a network of mmsegmentation on the pseudo-masks of `ssr refine`."""

    model: Annotated[
        str,
        option(
            "Network: deeplabv3plus, segformer, upernet, or a FILE.py of mmsegmentation, which is executed and "
            "whose network is used."
        ),
    ] = "deeplabv3plus"
    backbone: Annotated[
        str,
        option(
            "Backbone: a timm ViT, ResNet or pyramid, mit_b0 to mit_b5, or dino, the model of [dino]; auto is "
            "resnet50, mit_b0 or dino."
        ),
    ] = "auto"
    backbone_weights: Annotated[
        str,
        option(
            "Weights of the backbone: those that timm or mmsegmentation published (hub), random ones (none), or a"
            " local .safetensors (mit: .pth)."
        ),
    ] = "hub"
    supervision: Annotated[
        Literal["pseudo", "masks"],
        option(
            "What the network learns from: pseudo-masks (pseudo), or ground truth (masks; opens it), which gives "
            "the upper bound."
        ),
    ] = "pseudo"
    masks: Annotated[
        Path | None, option("Folder of pseudo-masks, in which 255 is ignored; without it, those of `ssr refine` in WORK.")
    ] = None
    corrected: Annotated[
        bool, option("Use the masks of `ssr import` in WORK where there are any, with supervision pseudo.")
    ] = True
    val_split: Annotated[
        str | None, option("Split to validate on (opens its ground truth); the best model on it is kept as best.safetensors.")
    ] = None
    validate_every: Annotated[int, Field(ge=0, description="Steps between two validations; 0 validates only at the end.")] = 0
    schedule: Annotated[
        str, Field(pattern=r"^[1-9]\d{0,8}k?$", description="Training steps: 20k, 40k, 80k, 160k, or any number such as 500.")
    ] = "20k"
    batch: Annotated[int, Field(ge=2, description="Crops in a step, over all processes.")] = 8
    crop: Annotated[
        int,
        Field(
            ge=32,
            description="Side of a training crop, in pixels (ViT: rounded to patches); an image's shorter side is scaled to "
            "it.",
        ),
    ] = 512
    min_scale: Annotated[float, Field(gt=0, description="Smallest factor of the random rescaling before the crop.")] = 0.5
    max_scale: Annotated[float, Field(gt=0, le=4, description="Largest factor of the random rescaling before the crop.")] = 2.0
    channels: Annotated[
        int, Field(ge=0, description="Width of the decode head, in channels; 0 means the network's own (512, SegFormer 256).")
    ] = 0
    learning_rate: Annotated[
        float, Field(gt=0, description="Learning rate of the decode head for AdamW (SegFormer: 6e-4).")
    ] = 6e-4
    backbone_learning_rate: Annotated[float, Field(gt=0, description="Learning rate of the backbone (SegFormer: 6e-5).")] = 6e-5
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay of AdamW (SegFormer: 0.01).")] = 0.01
    warmup: Annotated[
        int, Field(ge=0, description="Steps over which the learning rates rise from 0; at most a tenth of all steps.")
    ] = 1500
    class_balanced: Annotated[
        bool, option("Weigh each class in the loss by the inverse square root of its pixel frequency.")
    ] = False
    amp: Annotated[bool, option("Compute in bf16 where that is safe (autocast, GPU only).")] = False
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="Random seed of weights, crops and dropout.")] = 0
    save_every: Annotated[int, Field(ge=1, description="Steps between two saved training states.")] = 1000
    resume: Annotated[
        Literal["auto", "never"], option("What to do with a stopped training: auto continues it, never trains from the start.")
    ] = "auto"
    launcher: Annotated[
        Literal["auto", "none", "torchrun", "slurm"],
        option("Launcher of the processes; auto is torchrun if it started this one, and else none."),
    ] = "auto"
    write_only: Annotated[
        bool, option("Write the config for mmsegmentation and do not train; a stock mmsegmentation runs it.")
    ] = False

    @property
    def iterations(self) -> int:
        """Steps of the schedule."""
        return int(self.schedule.removesuffix("k")) * (1000 if self.schedule.endswith("k") else 1)
