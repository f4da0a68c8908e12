"""File of a trained segmentation model from `ssr train` for `ssr predict`: the trained parts, without CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.encoders.weights import Weights
from pipelines.errors import UsageError
from pipelines.models.decoder import SegmentationDecoder
from pipelines.models.text_classifier import TextClassifier
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint
from pipelines.stores.manifest import differences

FORMAT = "ssr segmentation decoder 1"
UPPER_BOUND = "trained on ground-truth masks: an upper bound, not a weakly supervised result"
SUPERVISIONS = ("pseudo", "corrected", "masks")
"""Possible values of ``Segmenter.supervision``, which names the masks of the training."""
_TEXT_SIZES = ("width", "hidden", "residual", "classes", "words")
_SIZES = ("blocks", "width", "classes", "hidden", "layers", "heads")


@dataclass(frozen=True)
class Segmenter:
    """A trained decoder with its classes and training data.

    Attributes:
        decoder: Decoder in evaluation mode.
        blocks: Number of CLIP blocks, from the first, whose tokens it takes.
        classes: Names of the foreground classes, in the order of its logits.
        supervision: Masks of its training: ``pseudo``, ``corrected`` (some of them are), or ``masks``, which is ground truth
            and an upper bound.
        iteration: Number of steps of its training.
    """

    decoder: SegmentationDecoder
    blocks: int
    classes: tuple[str, ...]
    supervision: str
    iteration: int


def write_segmenter(path: Path, segmenter: Segmenter, clip: Weights) -> None:
    """Write the trained parts; ``clip`` is the frozen CLIP of the training."""
    note = {
        "format": FORMAT,
        "clip": clip.provenance(),
        "classes": list(segmenter.classes),
        "supervision": segmenter.supervision,
        "iteration": segmenter.iteration,
        "sizes": segmenter.decoder.sizes,
    }
    if segmenter.decoder.text is not None:
        note["text"] = segmenter.decoder.text.sizes
    write_checkpoint(path, segmenter.decoder.state_dict(), note)


def read_segmenter(path: Path, clip: Weights, flag: str = "--model") -> Segmenter:
    """Read a model for this CLIP.

    Raises:
        UsageError: The file is missing, damaged or no such model, or was trained on another CLIP.
    """
    tensors, note = read_checkpoint(path, flag)
    if note.get("format") != FORMAT:
        raise UsageError(f"{path} does not hold a segmentation model", f"{flag}: a file written by `ssr train`")
    if note.get("clip") != clip.provenance():
        first = differences(note.get("clip"), clip.provenance(), "clip")[0]
        raise UsageError(f"{path} was trained with another CLIP ({first})", "--clip-model, --clip-pretrained")
    try:
        return _rebuilt(tensors, note)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError, RuntimeError) as error:
        raise UsageError(f"{path} is damaged: its tensors are not those of a segmentation model", flag) from error


def _rebuilt(tensors: dict[str, Tensor], note: dict[str, Any]) -> Segmenter:
    sizes, classes, supervision = note["sizes"], note["classes"], note["supervision"]
    _check_sizes(sizes, _SIZES)
    words = note.get("text")
    if words is not None:
        _check_sizes({**words, "residual": 1}, _TEXT_SIZES)
        if words["classes"] != sizes["classes"]:
            raise ValueError
    if not isinstance(classes, list) or len(classes) != sizes["classes"] or not all(isinstance(name, str) for name in classes):
        raise ValueError
    sound = all(tensor.dtype == torch.float32 and bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    if supervision not in SUPERVISIONS or not sound:
        raise ValueError
    with torch.device("meta"):  # sizes in a damaged file cost no memory
        text = None if words is None else TextClassifier(**{**words, "residual": bool(words["residual"])})
        decoder = SegmentationDecoder(**sizes, text=text)
    decoder.load_state_dict(tensors, assign=True)
    return Segmenter(decoder.eval().requires_grad_(False), sizes["blocks"], tuple(classes), supervision, int(note["iteration"]))


def _check_sizes(sizes: dict[str, Any], names: tuple[str, ...]) -> None:
    if sorted(sizes) != sorted(names) or not all(isinstance(size, int) and 0 < size <= 4096 for size in sizes.values()):
        raise ValueError
