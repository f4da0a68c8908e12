"""Licences of released weights, which are shown before the weights are used."""

from __future__ import annotations

from pipelines.encoders.model_config import dino_architecture
from pipelines.encoders.weights_folder import dino_known
from pipelines.errors import UsageError

PERMISSIVE = {"apache-2.0", "mit", "bsd-3-clause"}

LICENCES = {
    "dinov3-license": "the DINOv3 License, to be accepted before they are used or passed on: "
    "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
}
"""Descriptions of licences in timm's list; any other licence is shown by its name."""


def dino_licence(model: str) -> str | None:
    """Return a line on the licence of a DINO's released weights; None if it is permissive or timm lists none.

    Args:
        model: As for `resolve_dino`.
    """
    try:
        name = dino_architecture(model).name
    except UsageError:
        return None
    licence = dino_known(name).license
    if licence is None or licence in PERMISSIVE:
        return None
    return f"released weights of {name} are under {LICENCES.get(licence, licence)}"
