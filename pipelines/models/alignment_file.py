"""File of alignment heads from `ssr align`: its content, and the CLIP, classes and texts that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.datasets.classes import ClassList
from pipelines.encoders.class_embeddings import TextEmbeddings, TextSources
from pipelines.encoders.weights import Weights
from pipelines.errors import UsageError
from pipelines.models.alignment import AlignmentHeads
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint
from pipelines.stores.manifest import differences

FLAG = "--ckpt"

FORMAT = "ssr alignment heads 2"

_WHAT = {"clip": "another CLIP", "classes": "another class list", "text": "other class or background embeddings"}


@dataclass(frozen=True)
class Alignment:
    """Trained alignment heads with their prototypes and training statistics.

    Attributes:
        heads: Heads in evaluation mode.
        features: Patch features that the heads take, ``output`` or ``value``.
        class_photos: Number of training images of each class, ``(C,)``.
        average_precision: Average precision of the heads for each class over the training images, ``(C,)`` in [0, 1].
        image_prototypes: ``(P, E)`` at the end of the training.
    """

    heads: AlignmentHeads
    features: str
    class_photos: Tensor
    average_precision: Tensor
    image_prototypes: Tensor


def identity(weights: Weights, classes: ClassList, text: TextSources | TextEmbeddings) -> dict[str, Any]:
    """Return what a checkpoint belongs to: the CLIP, the classes and the embeddings of its training."""
    return {"clip": weights.provenance(), "classes": list(classes.names), "text": text.provenance()}


def write_alignment(path: Path, alignment: Alignment, belongs_to: dict[str, Any]) -> None:
    """Write a checkpoint; ``belongs_to`` is `identity`."""
    heads = alignment.heads
    note = {
        "format": FORMAT,
        "belongs_to": belongs_to,
        "residual": heads.isa.residual,
        "features": alignment.features,
    }
    tensors = {
        **heads.state_dict(),
        "class_photos": alignment.class_photos,
        "average_precision": alignment.average_precision,
        "image_prototypes": alignment.image_prototypes,
    }
    write_checkpoint(path, tensors, note)


def read_alignment(path: Path, weights: Weights, classes: ClassList, text: TextEmbeddings) -> Alignment:
    """Read a checkpoint for this CLIP and these classes.

    Raises:
        UsageError: The file is missing or no such checkpoint, or belongs to another CLIP, class list or text bank.
    """
    tensors, note = read_checkpoint(path, FLAG)
    if note.get("format") != FORMAT:
        raise UsageError(f"{path} does not hold alignment heads", f"{FLAG}: a file written by `ssr align`")
    wanted, found = identity(weights, classes, text), note.get("belongs_to")
    for key, what in _WHAT.items():
        if not isinstance(found, dict) or found.get(key) != wanted[key]:
            old = found.get(key) if isinstance(found, dict) else None
            first = differences(old, wanted[key], key)[0]
            raise UsageError(f"{path} was trained with {what} ({first})", f"{FLAG}, or train anew with `ssr align`")
    try:
        width = text.classes.shape[1]
        hidden = tensors["isa.layers.0.weight"].shape[0]
        heads = AlignmentHeads(width, hidden, bool(note["residual"]), 1.0, learn_temperature=False)
        class_photos, prototypes = tensors.pop("class_photos"), tensors.pop("image_prototypes")
        precision = tensors.pop("average_precision")
        heads.load_state_dict(tensors)
        counted = class_photos.shape == (len(classes.names),) and class_photos.dtype == torch.int64
        ranked = precision.shape == class_photos.shape and bool(((precision >= 0) & (precision <= 1)).all())
        if not counted or not ranked or bool((class_photos < 0).any()) or note["features"] not in ("output", "value"):
            raise ValueError
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (*tensors.values(), prototypes)):
            raise ValueError
        return Alignment(heads.eval().requires_grad_(False), note["features"], class_photos, precision, prototypes)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path} is damaged: its tensors are not those of alignment heads", FLAG) from error
