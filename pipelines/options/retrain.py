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
        option("deeplabv3plus, segformer, upernet, or a FILE.py of mmsegmentation (its network is used; the file is executed)"),
    ] = "deeplabv3plus"
    backbone: Annotated[
        str,
        option("timm ViT, ResNet or pyramid; mit_b0 to mit_b5; dino = the model of [dino]; auto = resnet50, mit_b0 or dino"),
    ] = "auto"
    backbone_weights: Annotated[
        str, option("hub = weights published by timm or mmsegmentation; none = random; or a local .safetensors (mit: .pth)")
    ] = "hub"
    supervision: Annotated[
        Literal["pseudo", "masks"],
        option("pseudo = pseudo-masks; masks = ground truth (opens it): the upper bound"),
    ] = "pseudo"
    masks: Annotated[Path | None, option("folder of pseudo-masks, 255 = ignore; without it, those of `ssr refine` in WORK")] = (
        None
    )
    corrected: Annotated[bool, option("use the masks of `ssr import` in WORK where there are any, with supervision pseudo")] = (
        True
    )
    val_split: Annotated[
        str | None, option("split to validate on (opens its ground truth); the best model on it is kept as best.safetensors")
    ] = None
    validate_every: Annotated[int, Field(ge=0, description="steps between two validations; 0 = only at the end")] = 0
    schedule: Annotated[
        str, Field(pattern=r"^[1-9]\d{0,8}k?$", description="training steps: 20k, 40k, 80k, 160k, or any number such as 500")
    ] = "20k"
    batch: Annotated[int, Field(ge=2, description="crops per step, over all processes")] = 8
    crop: Annotated[
        int,
        Field(
            ge=32,
            description="side of a training crop, pixels (ViT: rounded to patches); an image's shorter side is scaled to it",
        ),
    ] = 512
    min_scale: Annotated[float, Field(gt=0, description="smallest factor of the random rescaling before the crop")] = 0.5
    max_scale: Annotated[float, Field(gt=0, le=4, description="largest factor of the random rescaling before the crop")] = 2.0
    channels: Annotated[
        int, Field(ge=0, description="width of the decode head, channels; 0 = the network's own (512, SegFormer 256)")
    ] = 0
    learning_rate: Annotated[float, Field(gt=0, description="learning rate of the decode head, AdamW (SegFormer: 6e-4)")] = 6e-4
    backbone_learning_rate: Annotated[float, Field(gt=0, description="learning rate of the backbone (SegFormer: 6e-5)")] = 6e-5
    weight_decay: Annotated[float, Field(ge=0, description="weight decay of AdamW (SegFormer: 0.01)")] = 0.01
    warmup: Annotated[
        int, Field(ge=0, description="steps over which the learning rates rise from 0; at most a tenth of all steps")
    ] = 1500
    class_balanced: Annotated[
        bool, option("weigh each class in the loss by the inverse square root of its pixel frequency")
    ] = False
    amp: Annotated[bool, option("bf16 autocast (GPU only)")] = False
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="random seed of weights, crops and dropout")] = 0
    save_every: Annotated[int, Field(ge=1, description="steps between two saved training states")] = 1000
    resume: Annotated[Literal["auto", "never"], option("auto = continue a stopped training; never = train from the start")] = (
        "auto"
    )
    launcher: Annotated[
        Literal["auto", "none", "torchrun", "slurm"],
        option("launcher of the processes; auto = torchrun if it started this one, else none"),
    ] = "auto"
    write_only: Annotated[bool, option("write the mmsegmentation config and do not train; a stock mmsegmentation runs it")] = (
        False
    )

    @property
    def iterations(self) -> int:
        """Steps of the schedule."""
        return int(self.schedule.removesuffix("k")) * (1000 if self.schedule.endswith("k") else 1)
