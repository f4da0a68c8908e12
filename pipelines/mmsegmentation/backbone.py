"""Backbones in the form of mmsegmentation's configs: any feature pyramid or ViT of timm, and SegFormer's own MiT."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipelines.encoders.model_config import TimmModel
from pipelines.errors import UsageError

PUBLISHED = "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/"
MIT: dict[str, tuple[int, list[int], str]] = {
    # name: width of the first stage, layers of each, weights that mmsegmentation publishes
    "mit_b0": (32, [2, 2, 2, 2], "mit_b0_20220624-7e0fe6dd.pth"),
    "mit_b1": (64, [2, 2, 2, 2], "mit_b1_20220624-02e5a6a1.pth"),
    "mit_b2": (64, [3, 4, 6, 3], "mit_b2_20220624-66e8bf70.pth"),
    "mit_b3": (64, [3, 4, 18, 3], "mit_b3_20220624-13b1141c.pth"),
    "mit_b4": (64, [3, 8, 27, 3], "mit_b4_20220624-d588d980.pth"),
    "mit_b5": (64, [3, 6, 40, 3], "mit_b5_20220624-658746d9.pth"),
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A backbone of four feature maps.

    Attributes:
        config: The config from which mmengine builds it.
        channels: Channels of the four maps, the finest first.
        patch: Side of a ViT's patch, pixels, whose four maps have one size; None for a pyramid.
        mean: Mean of RGB in [0, 1].
        std: Standard deviation of RGB in [0, 1].
    """

    config: dict[str, Any]
    channels: tuple[int, ...]
    patch: int | None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def mit_backbone(name: str, weights: str) -> Backbone:
    """Return SegFormer's backbone.

    Args:
        name: ``mit_b0`` to ``mit_b5``.
        weights: ``hub``, ``none``, or a ``.pth`` of tensors, which is loaded without pickled code.
    """
    width, layers, file = MIT[name]
    heads = [1, 2, 5, 8]
    config: dict[str, Any] = {"type": "MixVisionTransformer", "embed_dims": width, "num_layers": layers, "num_heads": heads}
    config |= {"sr_ratios": [8, 4, 2, 1], "drop_path_rate": 0.1}
    checkpoint = PUBLISHED + file
    if weights not in {"none", "hub"}:
        own = _file(weights, ".pth")
        _check_mit(own, name)
        checkpoint = str(own)
    if weights != "none":
        config["init_cfg"] = {"type": "Pretrained", "checkpoint": checkpoint}
    return Backbone(config, tuple(width * share for share in heads), None)


def timm_backbone(model: TimmModel, weights: str, output_stride: int | None = None) -> Backbone:
    """Return a backbone of timm, as mmsegmentation's ``TIMMBackbone``.

    Args:
        model: Name and arguments of the model.
        weights: ``hub``, ``none``, or a ``.safetensors``.
        output_stride: Stride of the coarsest map of a ResNet; other models do not accept it.

    Raises:
        UsageError: Timm has no such model, the model has no four feature maps for any image size, or the file is not its own.
    """
    import timm

    if not timm.is_model(model.name.split(".")[0]):
        raise UsageError(f"timm has no model {model.name!r}", "--backbone: see timm.list_models(), or dino")
    arguments = dict(model.arguments)
    if output_stride is not None and model.name.startswith("resne"):
        arguments["output_stride"] = output_stride
    maps = _feature_maps(model.name, arguments)
    vit = hasattr(maps, "model") and hasattr(maps.model, "blocks") and len(set(maps.feature_info.reduction())) == 1
    if vit:
        arguments["dynamic_img_size"] = True
        maps = _feature_maps(model.name, arguments)
    depth = len(maps.model.blocks if vit else maps.feature_info.out_indices)
    if depth < 4:
        raise UsageError(f"{model.name} has {depth} feature maps, expected four", "another --backbone")
    if getattr(maps, "output_fmt", "NCHW") != "NCHW":  # mmsegmentation would read its width as its height
        raise UsageError(f"{model.name} gives its maps channels last, which mmsegmentation does not take", "another --backbone")
    chosen = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)] if vit else list(maps.feature_info.out_indices[-4:])
    width = maps.feature_info.channels()
    channels = [width[-1]] * 4 if vit else width[-4:]
    config: dict[str, Any] = {"type": "TIMMBackbone", "model_name": model.name, "features_only": True, "out_indices": chosen}
    config |= arguments | {"pretrained": weights != "none"}
    if weights not in {"none", "hub"}:
        file = _file(weights, ".safetensors")
        _check_names(file, model)
        config["pretrained_cfg_overlay"] = {"file": str(file)}
    registered = timm.get_pretrained_cfg(model.name, allow_unregistered=False)
    patch = int(maps.model.patch_embed.patch_size[0]) if vit else None
    mean, std = (
        tuple(float(value) for value in model.normalisation.get(key, getattr(registered, key, standard)))
        for key, standard in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    return Backbone(config, tuple(int(c) for c in channels), patch, mean, std)


def _feature_maps(name: str, arguments: dict[str, Any]) -> Any:
    """Return timm's model with feature maps, on a device without memory for weights."""
    try:
        return _without_memory(name, json.dumps({**arguments, "features_only": True}))
    except (RuntimeError, TypeError, AttributeError, ValueError, AssertionError, ArithmeticError) as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(f"timm cannot make feature maps of {name} for any size of image ({found})", "--backbone") from error


@lru_cache(maxsize=8)
def _without_memory(name: str, arguments: str) -> Any:
    """Build a model of timm on a device without memory for weights, once for each set of arguments, given as JSON."""
    import timm

    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **json.loads(arguments))


def _check_names(file: Path, model: TimmModel) -> None:
    """Check that a file has all tensors of a model, because timm silently initialises missing ones at random."""
    wanted = _without_memory(model.name, json.dumps({"num_classes": 0, **model.arguments})).state_dict().keys()
    try:
        with safe_open(file, framework="pt") as tensors:
            held = wanted & set(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is not a readable .safetensors file", "--backbone-weights") from error
    if len(held) < len(wanted) / 2:
        found = f"{file} holds {len(held)} of the {len(wanted)} tensors of {model.name}"
        raise UsageError(f"{found}; {sorted(wanted - held)[0]} is missing", "--backbone-weights")


def _check_mit(file: Path, name: str) -> None:
    """Check that a file fits a MiT, because mmengine silently initialises missing tensors at random."""
    width, layers, _ = MIT[name]
    try:
        held = torch.load(file, map_location="meta", weights_only=True)
        held = held.get("state_dict", held)
        first = tuple(held["layers.0.0.projection.weight"].shape)
        found = [len({key.split(".")[3] for key in held if key.startswith(f"layers.{stage}.1.")}) for stage in range(4)]
    except Exception as error:  # torch.load raises many kinds of errors for bad bytes
        raise UsageError(f"{file} does not hold weights of {name} by mmsegmentation's names", "--backbone-weights") from error
    if (first, found) != ((width, 3, 7, 7), layers):
        raise UsageError(f"{file} holds a backbone of width {first[0]} and layers {found}, not {name}", "--backbone-weights")


def _file(weights: str, suffix: str) -> Path:
    path = Path(weights).expanduser()
    if path.suffix != suffix:
        raise UsageError(f"expected hub, none or a {suffix} of this backbone, found {weights!r}", "--backbone-weights")
    if not path.is_file():
        raise UsageError(f"no weights at {path}", "--backbone-weights")
    return path.resolve()
