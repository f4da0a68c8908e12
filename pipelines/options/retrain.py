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
        str, option("deeplabv3plus, segformer, upernet, or a FILE.py of mmsegmentation (its network is taken; the file is run)")
    ] = "deeplabv3plus"
    backbone: Annotated[
        str,
        option("a ViT, ResNet or pyramid of timm, mit_b0 to mit_b5, dino = that of [dino]; auto = resnet50, mit_b0 or dino"),
    ] = "auto"
    backbone_weights: Annotated[
        str, option("hub = as timm or mmsegmentation publish them, none = random, or a local .safetensors (mit: .pth)")
    ] = "hub"
    supervision: Annotated[
        Literal["pseudo", "masks"],
        option("pseudo = the pseudo-masks; masks = ground truth (opens it): the upper bound"),
    ] = "pseudo"
    masks: Annotated[Path | None, option("folder of pseudo-masks, 255 = ignore; default: those of `ssr refine` in WORK")] = None
    val_split: Annotated[
        str | None, option("split to validate on (opens its ground truth), which also chooses best.safetensors")
    ] = None
    validate_every: Annotated[int, Field(ge=0, description="steps between two validations, 0 = at the end only")] = 0
    schedule: Annotated[
        str, Field(pattern=r"^[1-9]\d{0,8}k?$", description="steps: 20k, 40k, 80k, 160k, or any number such as 500")
    ] = "20k"
    batch: Annotated[int, Field(ge=2, description="crops a step, over all processes")] = 8
    crop: Annotated[
        int,
        Field(ge=32, description="side of a crop, pixels (ViT: to the nearest patch); a photo's shorter side is scaled to it"),
    ] = 512
    min_scale: Annotated[float, Field(gt=0, description="smallest random resolution factor before the crop")] = 0.5
    max_scale: Annotated[float, Field(gt=0, le=4, description="largest random resolution factor before the crop")] = 2.0
    channels: Annotated[int, Field(ge=0, description="width of the head, 0 = the network's own (512, SegFormer 256)")] = 0
    learning_rate: Annotated[float, Field(gt=0, description="of the head, AdamW (SegFormer: 6e-4)")] = 6e-4
    backbone_learning_rate: Annotated[float, Field(gt=0, description="of the backbone (SegFormer: 6e-5)")] = 6e-5
    weight_decay: Annotated[float, Field(ge=0, description="of AdamW (SegFormer: 0.01)")] = 0.01
    warmup: Annotated[int, Field(ge=0, description="steps over which learning rates rise from 0, a tenth of all at most")] = (
        1500
    )
    class_balanced: Annotated[bool, option("weigh classes in the loss by the square root of their rareness")] = False
    amp: Annotated[bool, option("bf16 autocast (GPU)")] = False
    seed: Annotated[int, Field(ge=0, lt=1_000_000, description="of weights, crops and dropout")] = 0
    save_every: Annotated[int, Field(ge=1, description="steps between two saves of the state")] = 1000
    resume: Annotated[Literal["auto", "never"], option("go on where a stopped training was, or train from the start")] = "auto"
    launcher: Annotated[
        Literal["auto", "none", "torchrun", "slurm"], option("what started the processes; auto = torchrun if it did")
    ] = "auto"
    write_only: Annotated[bool, option("only write the config, which a stock mmsegmentation runs too")] = False

    @property
    def iterations(self) -> int:
        """Steps of the schedule."""
        return int(self.schedule.removesuffix("k")) * (1000 if self.schedule.endswith("k") else 1)
