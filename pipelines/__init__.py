"""Weakly supervised segmentation: image-level labels become pseudo-masks and a segmentation model.

The package exports the names of `pipelines.api` and loads them on first use, so that its import does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.api import PseudoLabeler, PseudoLabels, PseudoLabelTensors, SegmentationModel
    from pipelines.errors import ImageError, SsrError, UsageError

__all__ = [
    "ImageError", "PseudoLabelTensors", "PseudoLabeler", "PseudoLabels", "SegmentationModel", "SsrError", "UsageError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    return getattr(import_module("pipelines.errors" if name.endswith("Error") else "pipelines.api"), name)


def __dir__() -> list[str]:
    return __all__
