"""`ssr text`: embeds class names and background words with CLIP's text tower, once, and writes text banks."""

from __future__ import annotations

from pathlib import Path

from pipelines.datasets import kind_of, load_class_list, load_dataset
from pipelines.datasets.classes import ClassList
from pipelines.encoders.text import encode_prompts, write_bank
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.options.sources import ClipOptions, DatasetOptions


def write_banks(dataset: DatasetOptions, clip: ClipOptions, target: Path) -> tuple[Path, Path]:
    """Write one bank of classes and one bank of background words.

    Args:
        dataset: Options with the class list: ``classes``, or the kind's own.
        clip: The CLIP whose text tower is used.
        target: Path of the bank of classes; the other bank gets ``-background`` before the suffix.

    Returns:
        The two paths.

    Raises:
        UsageError: The weights contain no text tower.
    """
    classes = _class_list(dataset)
    loaded = build_clip(resolve_clip(clip.model, clip.pretrained))
    background = target.with_name(f"{target.stem}-background{target.suffix}")
    write_bank(target, encode_prompts(loaded, classes.names, classes.prompts, classes.template))
    write_bank(background, encode_prompts(loaded, classes.background, classes.background, classes.template))
    return target, background


def _class_list(dataset: DatasetOptions) -> ClassList:
    if dataset.classes is not None:
        return load_class_list(dataset.classes)
    if dataset.kind == "coco" and dataset.root is not None:  # a COCO export has its own classes
        return load_dataset(dataset).classes
    return kind_of(dataset).class_list or load_dataset(dataset).classes
