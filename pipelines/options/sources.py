"""Options that say what goes in: the dataset, the frozen encoders, and how a command runs.

Every field's description is its only documentation: the command line's help, the config reference and this file share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Base of all options: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def option(description: str, *, flag: str | None = None, choices: Sequence[str] = ()) -> object:
    """Metadata of a field.

    Args:
        description: One line.
        flag: Where it differs from the field's name.
        choices: Names that the package ships of a ``str`` that names a part, for help and completion. The part's table has the
            last word, for plugins may add to it.
    """
    extra: dict[str, Any] = ({"flag": flag} if flag else {}) | ({"choices": list(choices)} if choices else {})
    return Field(description=description, json_schema_extra=extra or None)


LONG_SIDE = 1024
"""Attention grows with the square of the patches: 3,072 of 1024 x 768 pixels, 46,875 of 12 megapixels, gigabytes a head.

VOC's and COCO's photos, at most 640, are not touched."""


class DatasetOptions(Options):
    """``[dataset]``: which images, and which classes each has."""

    kind: Annotated[str, option("layout of the dataset", flag="DATASET", choices=("voc", "coco", "folder"))] = "voc"
    root: Annotated[Path | None, option("dataset folder, e.g. VOCdevkit/VOC2012")] = None
    split: Annotated[str, option("split name, e.g. train, or a .txt file with one image id per line")] = "train"
    labels: Annotated[
        Path | None,
        option("image-level labels, .csv, .tsv, .json or .jsonl; without it, VOC's XML, COCO's JSON or labels.* of a folder"),
    ] = None
    absent_is_empty: Annotated[
        bool, option("images of the split without an annotation file or a row of labels have no class (labelImg, YOLO)")
    ] = False
    orient: Annotated[
        bool, option("turn photos as their EXIF says; off: pixels as stored, which masks of VOC and COCO are for")
    ] = False
    long_side: Annotated[
        int,
        Field(
            ge=0,
            description="pixels of the long side at which larger photos are encoded; masks keep the photo's size; 0 = any",
        ),
    ] = LONG_SIDE
    classes: Annotated[Path | None, option("class list of your own, with prompts and background words: .toml or .yaml")] = None


class ClipOptions(Options):
    """``[clip]``: the frozen CLIP."""

    model: Annotated[str, option("open_clip model name, or a .json that describes the model", flag="--clip-model")] = (
        "ViT-B-16-quickgelu"
    )
    pretrained: Annotated[
        str,
        option(
            "open_clip tag, or a local .safetensors (the image tower is enough if text banks are given)",
            flag="--clip-pretrained",
        ),
    ] = "openai"
    text_bank: Annotated[
        Path | None, option("class embeddings from `ssr text` (.safetensors), used instead of the text tower")
    ] = None
    background_bank: Annotated[
        Path | None, option("background embeddings from `ssr text` (.safetensors), used instead of the text tower")
    ] = None
    attributes: Annotated[
        Path | None,
        option("attributes that enrich the class embeddings (ExCEL): a .txt with a sentence a line, or a text bank of them"),
    ] = None
    attribute_centres: Annotated[
        int, Field(ge=1, description="clusters of the attributes that classes are enriched with (ExCEL: 112 VOC, 224 COCO)")
    ] = 112


class DinoOptions(Options):
    """``[dino]``: the frozen DINO."""

    model: Annotated[str, option("timm ViT name, or a config.json that describes the model", flag="--dino-model")] = (
        "vit_small_patch16_224.dino"
    )
    pretrained: Annotated[
        str, option("hub = weights published with the model, or a local .safetensors", flag="--dino-pretrained")
    ] = "hub"


class RunOptions(Options):
    """``[run]``: where and how a command runs; none of these changes a result beyond rounding."""

    device: Annotated[str, option("auto, cpu, cuda or cuda:N")] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        option("precision of the frozen encoders; auto = bf16 on a GPU or a CPU that has bf16 instructions, else fp32"),
    ] = "auto"
    batch_size: Annotated[int, Field(ge=0, description="images per batch; 0 = 16 on a GPU, 1 on a CPU")] = 0
    workers: Annotated[
        int,
        Field(ge=0, description="worker processes for superpixels and CRF, threads for other label maps; 0 = one per CPU core"),
    ] = 0
    max_failures: Annotated[
        int, Field(ge=-1, description="unreadable images that a run may leave out before it stops; -1 = any number")
    ] = 0
