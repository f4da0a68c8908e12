"""The three networks as mmsegmentation's configs: DeepLabV3+, SegFormer and UPerNet, on any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.mmsegmentation.backbone import Backbone

NORM = {"type": "BN", "requires_grad": True}  # `sync_bn` in the config makes it one norm over all processes
OUTPUT_STRIDE = {"deeplabv3plus": 16}
CHANNELS = {"deeplabv3plus": 512, "segformer": 256, "upernet": 512}


def network(
    name: str, backbone: Backbone, classes: int, crop: int, channels: int = 0, class_weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return the ``model`` of a config.

    Args:
        name: ``deeplabv3plus``, ``segformer`` or ``upernet``.
        backbone: Backbone with four feature maps.
        classes: Number of classes, background included.
        crop: Side of the crops of the training, pixels.
        channels: Width of the head; 0 is the network's default.
        class_weights: Weight of each class in the loss.

    Returns:
        The config from which mmengine builds the network.
    """
    channels = channels or CHANNELS[name]
    head: dict[str, Any] = {
        "num_classes": classes,
        "channels": channels,
        "dropout_ratio": 0.1,
        "norm_cfg": NORM,
        "align_corners": False,
        "loss_decode": _loss(class_weights),
    }
    wide = backbone.channels
    auxiliary: dict[str, Any] | None = {
        **head,
        **{"type": "FCNHead", "in_channels": wide[2], "in_index": 2, "channels": 256, "num_convs": 1, "concat_input": False},
        "loss_decode": _loss(class_weights, 0.4),
    }
    scales: list[float] | None = None
    if name == "deeplabv3plus":  # Chen et al., ECCV 2018; dilations of output stride 16
        head |= {"type": "DepthwiseSeparableASPPHead", "in_channels": wide[3], "in_index": 3, "dilations": [1, 6, 12, 18]}
        head |= {"c1_in_channels": wide[0], "c1_channels": 48}
        scales = [4, 2, 1, 1]
    elif name == "upernet":  # Xiao et al., ECCV 2018
        head |= {"type": "UPerHead", "in_channels": list(wide), "in_index": [0, 1, 2, 3], "pool_scales": [1, 2, 3, 6]}
        scales = [4, 2, 1, 0.5]
    else:  # Xie et al., NeurIPS 2021; all four maps of a ViT have one size and form no pyramid
        head |= {"type": "SegformerHead", "in_channels": list(wide), "in_index": [0, 1, 2, 3]}
        auxiliary = None
    parts: dict[str, Any] = {"backbone": backbone.config}
    if backbone.patch and scales:
        parts["neck"] = {"type": "MultiLevelNeck", "in_channels": list(wide), "out_channels": wide[0], "scales": scales}
    parts["decode_head"] = head
    if auxiliary:
        parts["auxiliary_head"] = auxiliary
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": preprocessor(backbone, crop),
        **parts,
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }


def preprocessor(backbone: Backbone, crop: int) -> dict[str, Any]:
    """Return the preprocessor, which normalises and pads images of BGR bytes."""
    found: dict[str, Any] = {
        "type": "SegDataPreProcessor",
        "mean": [round(255 * value, 3) for value in backbone.mean],
        "std": [round(255 * value, 3) for value in backbone.std],
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": 255,
        "size": (crop, crop),
    }
    return found | ({"test_cfg": {"size_divisor": backbone.patch}} if backbone.patch else {})


def _loss(class_weights: Sequence[float] | None, weight: float = 1.0) -> dict[str, Any]:
    loss: dict[str, Any] = {"type": "CrossEntropyLoss", "loss_weight": weight, "avg_non_ignore": True}
    if class_weights is None:
        return loss
    # the loss's own mean would look up the weight of class 255; without it, mmengine takes the mean over all pixels
    return loss | {"class_weight": list(class_weights), "reduction": "none"}
