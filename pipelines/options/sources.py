"""Options that say what goes in: the dataset, the frozen encoders, and how a command runs.

Every field's description is its only documentation: the command line's help, the config reference and this file share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Base of all options: frozen, strict about unknown keys, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


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

    kind: Annotated[
        str, option("Layout of the dataset: voc, coco or folder.", flag="DATASET", choices=("voc", "coco", "folder"))
    ] = "voc"
    root: Annotated[Path | None, option("Dataset folder, such as VOCdevkit/VOC2012.")] = None
    split: Annotated[str, option("Name of the split, such as train, or a .txt file with one image id on each line.")] = "train"
    labels: Annotated[
        Path | None,
        option(
            "Image-level labels (.csv, .tsv, .json or .jsonl); without them, VOC's XML, COCO's JSON or labels.* of a folder."
        ),
    ] = None
    absent_is_empty: Annotated[
        bool, option("Images of the split without an annotation file or a row of labels have no class (labelImg, YOLO).")
    ] = False
    orient: Annotated[
        bool, option("Turn photos as their EXIF says; when off, pixels stay as stored, which masks of VOC and COCO are for.")
    ] = False
    long_side: Annotated[
        int,
        Field(
            ge=0,
            description="Longest side, in pixels, at which photos are encoded; larger ones are reduced, masks keep the "
            "photo's size, and 0 means any.",
        ),
    ] = LONG_SIDE
    classes: Annotated[Path | None, option("Class list of your own, with prompts and background words (.toml or .yaml).")] = (
        None
    )


class ClipOptions(Options):
    """``[clip]``: the frozen CLIP."""

    model: Annotated[str, option("Model name in open_clip, or a .json that describes the model.", flag="--clip-model")] = (
        "ViT-B-16-quickgelu"
    )
    pretrained: Annotated[
        str,
        option(
            "Weights: a tag of open_clip, or a local .safetensors, in which the image tower is enough if text banks are given.",
            flag="--clip-pretrained",
        ),
    ] = "openai"
    text_bank: Annotated[
        Path | None, option("Class embeddings of `ssr text` (.safetensors), which take the place of the text tower.")
    ] = None
    background_bank: Annotated[
        Path | None, option("Background embeddings of `ssr text` (.safetensors), which take the place of the text tower.")
    ] = None
    attributes: Annotated[
        Path | None,
        option(
            "Attributes that enrich the class embeddings (ExCEL): a .txt with a sentence on each line, or a text bank of them."
        ),
    ] = None
    attribute_centres: Annotated[
        int,
        Field(
            ge=1, description="Clusters of the attributes that classes are enriched with (ExCEL: 112 for VOC, 224 for COCO)."
        ),
    ] = 112


class DinoOptions(Options):
    """``[dino]``: the frozen DINO."""

    model: Annotated[str, option("Name of a ViT in timm, or a config.json that describes the model.", flag="--dino-model")] = (
        "vit_small_patch16_224.dino"
    )
    pretrained: Annotated[
        str, option("Weights: those published with the model (hub), or a local .safetensors.", flag="--dino-pretrained")
    ] = "hub"


class RunOptions(Options):
    """``[run]``: where and how a command runs; none of these changes a result beyond rounding."""

    device: Annotated[str, option("Device: auto, cpu, cuda or cuda:N.")] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        option(
            "Precision of the frozen encoders: fp32 or bf16; auto is bf16 on a GPU or a CPU that has bf16 "
            "instructions, and else fp32."
        ),
    ] = "auto"
    batch_size: Annotated[int, Field(ge=0, description="Images in a batch; 0 means 16 on a GPU and 1 on a CPU.")] = 0
    workers: Annotated[
        int,
        Field(
            ge=0,
            description="Worker processes for superpixels and CRF, and threads for other label maps; 0 means one for each CPU"
            " core.",
        ),
    ] = 0
    max_failures: Annotated[
        int, Field(ge=-1, description="Unreadable images that a run may leave out before it stops; -1 allows any number.")
    ] = 0
