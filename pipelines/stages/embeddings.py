"""The class and background embeddings of a run, from text banks or the text tower."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.datasets.classes import ClassList
from pipelines.encoders.text import TextBank, encode_prompts, read_bank
from pipelines.encoders.weights import LoadedClip
from pipelines.errors import UsageError
from pipelines.options.sources import ClipOptions


@dataclass(frozen=True)
class TextEmbeddings:
    """What images are compared with.

    Attributes:
        classes: ``(C, D)`` fp32, L2-normalised, in the class list's order.
        background: ``(M, D)`` fp32, L2-normalised.
        background_names: The M words.
    """

    classes: Tensor
    background: Tensor
    background_names: tuple[str, ...]

    @property
    def all(self) -> Tensor:
        """``(C + M, D)``: classes, then background words."""
        return torch.cat([self.classes, self.background])

    def provenance(self) -> dict[str, str]:
        """SHA-256 of the embeddings, for manifests."""
        return {
            "class_embeddings": hashlib.sha256(self.classes.numpy().tobytes()).hexdigest()[:16],
            "background_embeddings": hashlib.sha256(self.background.numpy().tobytes()).hexdigest()[:16],
        }


def text_embeddings(clip: LoadedClip, classes: ClassList, options: ClipOptions) -> TextEmbeddings:
    """Read the banks that are given, embed the rest with the text tower.

    Raises:
        UsageError: A class without embedding, a bank of another model, or neither bank nor text tower.
    """
    if options.text_bank:
        of_classes = _in_class_order(read_bank(options.text_bank, clip.weights.name), classes, str(options.text_bank))
    else:
        of_classes = encode_prompts(clip, classes.names, classes.prompts, classes.template).embeddings
    if options.background_bank:
        background = read_bank(options.background_bank, clip.weights.name)
    else:
        background = encode_prompts(clip, classes.background, classes.background, classes.template)
    if background.embeddings.shape[1] != of_classes.shape[1]:
        raise UsageError(
            f"class embeddings have {of_classes.shape[1]} dimensions, background embeddings {background.embeddings.shape[1]}",
            "--text-bank and --background-bank must be of one model",
        )
    return TextEmbeddings(of_classes, background.embeddings, background.names)


def _in_class_order(bank: TextBank, classes: ClassList, where: str) -> Tensor:
    rows: dict[int, int] = {}
    for row, name in enumerate(bank.names):
        try:
            rows[classes.index(name)] = row  # the class list knows aliases such as COCO's own names
        except UsageError:
            continue  # a bank may hold more classes than the dataset
    missing = [name for index, name in enumerate(classes.names) if index not in rows]
    if missing:
        raise UsageError(f"{where} has no embedding of class {missing[0]!r}", "write a bank of your classes with `ssr text`")
    return bank.embeddings[[rows[index] for index in range(len(classes.names))]]
