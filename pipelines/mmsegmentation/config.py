"""A complete, readable mmsegmentation config: data, network, schedule, evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from typing import Any

from pipelines.options.retrain import RetrainOptions

SCALE_RATIO = 4
"""An image is scaled until its shorter side is that of the crop, or its longer side is this many times as long."""

WIDTH = 110
"""Number of characters of a line of the config."""

_READ = {"type": "LoadImageFromFile", "color_type": "color_ignore_orientation", "imdecode_backend": "pillow"}
# pillow without EXIF rotation, because masks are for the pixels as stored


@dataclass(frozen=True)
class SplitFiles:
    """Images and label maps of one split, as mmsegmentation finds them: by a folder and a suffix each, and a list of names.

    Attributes:
        names: Text file with one name per line.
        images: Folder of the images.
        masks: Folder of the label maps.
        image_suffix: Suffix of the image files, with its dot.
    """

    names: Path
    images: Path
    masks: Path
    image_suffix: str = ".jpg"


def photo_scale(crop: int) -> tuple[int, int]:
    """Return the largest (long side, short side) that an image is scaled to."""
    return SCALE_RATIO * crop, crop


def config(  # noqa: PLR0913 - one for each thing that a config holds
    model: dict[str, Any],
    options: RetrainOptions,
    crop: int,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    train: SplitFiles,
    val: SplitFiles | None,
    batch: int,
    workers: int,
) -> dict[str, Any]:
    """Return all sections of a config, in reading order.

    Args:
        model: The network.
        options: Schedule, learning rates, augmentation.
        crop: Side of a crop, pixels.
        classes: Names of the classes, background first.
        palette: RGB of each class.
        train: Images and label maps of the training.
        val: Images and ground truth of the validation, or None.
        batch: Crops per step and process.
        workers: Processes that read images, for each training process.

    Returns:
        The sections by their top-level names.
    """
    metainfo = {"classes": list(classes), "palette": [list(map(int, colour)) for colour in palette]}
    lists = [{"type": "LoadAnnotations"}]
    resize = [{"type": "Resize", "scale": photo_scale(crop), "keep_ratio": True}]
    test_pipeline = [_READ, *resize, *lists, {"type": "PackSegInputs"}]
    iterations = options.iterations
    sections: dict[str, Any] = {
        "default_scope": "mmseg",
        "train_pipeline": [_READ, *lists, *_augmentation(options, crop), {"type": "PackSegInputs"}],
        "test_pipeline": test_pipeline,
        "train_dataloader": {
            "batch_size": batch,
            **_workers(workers),
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": _dataset(train, metainfo, "train_pipeline") | {"max_refetch": 0},
        },
    }
    if val is not None:
        loader = {
            "batch_size": 1,
            **_workers(workers),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": _dataset(val, metainfo, "test_pipeline") | {"test_mode": True},
        }
        evaluator = {"type": "IoUMetric", "iou_metrics": ["mIoU"]}
        sections |= {"val_dataloader": loader, "val_evaluator": evaluator, "val_cfg": {"type": "ValLoop"}}
        sections |= {"test_dataloader": loader, "test_evaluator": evaluator, "test_cfg": {"type": "TestLoop"}}
    warmup = min(options.warmup, iterations // 10)
    warmup = warmup if warmup > 1 else 0  # a rise of one step would never end
    rise = [{"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "begin": 0, "end": warmup}] if warmup else []
    save = min(options.save_every, iterations)
    return sections | {
        "model": model,
        "optim_wrapper": _adamw(options),
        "param_scheduler": [*rise, {"type": "PolyLR", "power": 1.0, "begin": warmup, "end": iterations, "by_epoch": False}],
        "train_cfg": {
            "type": "IterBasedTrainLoop",
            "max_iters": iterations,
            "val_interval": options.validate_every or iterations,
        },
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": save, "max_keep_ckpts": 2}},
        "log_processor": {"by_epoch": False},
        "randomness": {"seed": options.seed},
        "sync_bn": "torch",
    }


def config_text(sections: dict[str, Any], title: str) -> str:
    """Return the config as Python source."""
    lines = [f"# {line}" if line else "#" for line in title.splitlines()]
    for name, value in sections.items():
        lines += ["", f"{name} = {_source(value, len(name) + 3)}"]
    return "\n".join(lines) + "\n"


def _source(value: Any, used: int = 0, indent: int = 0) -> str:
    """Return Python source in mmsegmentation's style, where the line has ``used`` characters already and ``indent`` levels."""
    if not isinstance(value, dict | list | tuple) or not value:
        return repr(value)
    opening, closing = ("[", "]") if isinstance(value, list) else ("(", ")")
    entries = [("", entry) for entry in value]
    if isinstance(value, dict):
        named = all(isinstance(key, str) and key.isascii() and key.isidentifier() and not iskeyword(key) for key in value)
        opening, closing = ("dict(", ")") if named else ("{", "}")
        entries = [(f"{key}=" if named else f"{key!r}: ", entry) for key, entry in value.items()]
    line = ", ".join(name + _source(entry) for name, entry in entries)
    if "\n" not in line and used + len(line) < WIDTH:
        return opening + line + "," * (opening == "(" and len(entries) == 1) + closing
    pad = "\n" + " " * (indent + 4)
    lines = [pad + name + _source(entry, indent + 4 + len(name), indent + 4) + "," for name, entry in entries]
    return opening + "".join(lines) + "\n" + " " * indent + closing


class _Name(str):
    """A name that the config itself defines, written without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _augmentation(options: RetrainOptions, crop: int) -> list[dict[str, Any]]:
    ratio = (options.min_scale, options.max_scale)
    return [
        {"type": "RandomResize", "scale": photo_scale(crop), "ratio_range": ratio, "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (crop, crop), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
    ]


def _dataset(files: SplitFiles, metainfo: dict[str, Any], pipeline: str) -> dict[str, Any]:
    return {
        "type": "BaseSegDataset",
        "ann_file": str(files.names),
        "data_prefix": {"img_path": str(files.images), "seg_map_path": str(files.masks)},
        "img_suffix": files.image_suffix,
        "seg_map_suffix": ".png",
        "metainfo": metainfo,
        "reduce_zero_label": False,  # 0 is background, which is a class; 255 is ignored
        "pipeline": _Name(pipeline),
    }


def _workers(workers: int) -> dict[str, Any]:
    return {"num_workers": workers, "persistent_workers": workers > 0}


def _adamw(options: RetrainOptions) -> dict[str, Any]:
    wrapper: dict[str, Any] = {"type": "OptimWrapper"}
    if options.amp:
        wrapper = {"type": "AmpOptimWrapper", "dtype": "bfloat16"}
    heads = {"lr_mult": options.learning_rate / options.backbone_learning_rate}
    return wrapper | {
        "optimizer": {"type": "AdamW", "lr": options.backbone_learning_rate, "weight_decay": options.weight_decay},
        "paramwise_cfg": {
            "custom_keys": {"neck": heads, "decode_head": heads, "auxiliary_head": heads},
            "norm_decay_mult": 0.0,  # for the backbone alone: parameters in custom_keys skip this rule
        },
    }
