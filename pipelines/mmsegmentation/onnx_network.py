"""A retrained network in the form that torch's exporter to ONNX can write."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.errors import UsageError
from pipelines.mmsegmentation.retrained import Retrained
from pipelines.ops.adaptive_pool import adaptive_means


class RetrainedNetwork(nn.Module):
    """A network that does what mmsegmentation does around its own: it normalises, pads, and enlarges its logits.

    Args:
        retrained: The network, on the CPU; it is copied.

    Raises:
        UsageError: A config file asks for more than one pass over an image, or for padding to one size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, retrained: Retrained) -> None:
        super().__init__()
        model: Any = copy.deepcopy(retrained.model)
        preprocessor, cases = model.data_preprocessor, model.test_cfg or {}
        if cases.get("mode", "whole") != "whole":
            raise UsageError("the config file of this network slides a window over an image, which ONNX is not written for")
        padding = preprocessor.test_cfg or {}
        if padding.get("size") is not None:
            raise UsageError("the config file of this network pads images to one size, which ONNX is not written for")
        self.divisor = int(padding.get("size_divisor") or 1)
        self.padding, self.reverse = preprocessor.pad_val, not preprocessor.channel_conversion
        plain = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        mean, std = (preprocessor.mean, preprocessor.std) if preprocessor._enable_normalize else plain
        self.register_buffer("mean", mean.view(1, 3, 1, 1).clone())
        self.register_buffer("std", std.view(1, 3, 1, 1).clone())
        if model.with_auxiliary_head:  # for the loss alone
            del model.auxiliary_head
        _replace_pools(model)
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Map RGB in [0, 1], ``(B, 3, H, W)``, to logits ``(B, C + 1, H, W)``, both fp32."""
        height, width = pixels.shape[-2:]
        pixels = 255 * (pixels.flip(1) if self.reverse else pixels)
        images = (pixels - self.mean) / self.std
        right, below = -width % self.divisor, -height % self.divisor
        if self.divisor > 1:
            images = F.pad(images, (0, right, 0, below), value=self.padding)  # (B, 3, H', W')
        size = images.shape[-2:]
        about = {"img_shape": size, "ori_shape": size, "pad_shape": size}
        logits: Tensor = self.model.encode_decode(images, [about])  # (B, C + 1, H', W')
        return logits[..., :height, :width]


class _AdaptiveMeans(nn.Module):
    """Adaptive average pooling for maps of any size; torch's own becomes an operator of one size, or a wrong one."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        """Return the means of ``(B, C, H, W)``."""
        return adaptive_means(maps, self.size)


def _replace_pools(module: nn.Module) -> None:
    """Replace all adaptive average pools of more than one bin by their twin for any size."""
    for name, child in module.named_children():
        size = getattr(child, "output_size", None)
        sides = size if isinstance(size, tuple) else (size, size)
        if isinstance(child, nn.AdaptiveAvgPool2d) and all(isinstance(side, int) for side in sides) and sides != (1, 1):
            setattr(module, name, _AdaptiveMeans(sides))
        else:
            _replace_pools(child)
