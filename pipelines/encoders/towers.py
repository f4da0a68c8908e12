"""The table of adapters, which split the models of several libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from timm.models import eva, vision_transformer
from torch import Tensor, nn

from pipelines.encoders import open_clip_vit, timm_eva, timm_vit
from pipelines.encoders.timm_trunk import can_project
from pipelines.encoders.tower import VisionTower
from pipelines.errors import UsageError
from pipelines.plugins import VARIABLE, Table, load_plugins


@dataclass(frozen=True)
class Adapter:
    """An adapter for one kind of model.

    Attributes:
        fits: Returns whether a model is of this kind; it may lie on the meta device.
        make: Makes the tower of a model; the model may be changed.
        with_text: Returns whether its tokens map into a joint space with text, so that it can be a CLIP's image tower.
        convert: Converts a file's tensors from other releases' names and sizes to the model's; None uses them unchanged.
    """

    fits: Callable[[nn.Module], bool]
    make: Callable[[nn.Module], VisionTower]
    with_text: Callable[[nn.Module], bool] = lambda _: True
    convert: Callable[[dict[str, Tensor], Any], Mapping[str, Tensor]] | None = None


TOWERS: Table[Adapter] = Table(
    "adapter",
    Adapter,
    {
        "open_clip's ViT": Adapter(open_clip_vit.fits, open_clip_vit.OpenClipViT),
        "timm's ViT": Adapter(timm_vit.fits, timm_vit.TimmViT, can_project, vision_transformer.checkpoint_filter_fn),
        "timm's Eva": Adapter(timm_eva.fits, timm_eva.TimmEva, can_project, eva.checkpoint_filter_fn),
    },
)
"""Adapters by the kind of model; a plugin may add others."""


def adapter_of(model: nn.Module, name: str, flag: str, text: bool = False) -> Adapter:
    """Return the adapter of a model; plugins are imported if none fits.

    Args:
        model: Model as its library built it; its weights are not used.
        name: Name of the model, for the message.
        flag: Flag that gave the name.
        text: Whether the model must be a CLIP's image tower.

    Raises:
        UsageError: No adapter fits the model.
    """

    def first() -> Adapter | None:
        return next((a for a in TOWERS.values() if a.fits(model) and (not text or a.with_text(model))), None)

    adapter = first()
    if adapter is None:
        load_plugins()
        adapter = first()
    if adapter is None:
        trunk = getattr(model, "trunk", model)
        known = ", ".join(TOWERS)
        raise UsageError(
            f"{name} is a {type(trunk).__name__} of a form that no adapter opens: expected {known}, with pre-norm blocks",
            f"{flag}; {VARIABLE}=MODULE adds others",
        )
    return adapter
