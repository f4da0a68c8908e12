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
from pipelines.stores.manifest import digest


@dataclass(frozen=True)
class TextEmbeddings:
    """What images are compared with.

    Attributes:
        classes: ``(C, D)`` fp32, L2-normalised, in the class list's order.
        background: ``(M, D)`` fp32, L2-normalised.
        background_names: The M words.
        sources: What made the rows of classes and of background: the text tower's last bits depend on threads and machine, so
            embeddings are told apart by this and not by their values.
    """

    classes: Tensor
    background: Tensor
    background_names: tuple[str, ...]
    sources: tuple[str, str]

    @property
    def all(self) -> Tensor:
        """``(C + M, D)``: classes, then background words."""
        return torch.cat([self.classes, self.background])

    def provenance(self) -> dict[str, str]:
        """Digests of the sources, for manifests and checkpoints."""
        return {"class_embeddings": self.sources[0], "background_embeddings": self.sources[1]}


def text_embeddings(clip: LoadedClip, classes: ClassList, options: ClipOptions) -> TextEmbeddings:
    """Read the banks that are given, embed the rest with the text tower.

    Raises:
        UsageError: A class without embedding, a bank of another model, or neither bank nor text tower.
    """
    if options.text_bank:
        of_classes = _in_class_order(read_bank(options.text_bank, clip.weights.name), classes, str(options.text_bank))
        class_source = _bytes_digest(of_classes)
    else:
        of_classes = encode_prompts(clip, classes.names, classes.prompts, classes.template).embeddings
        class_source = digest([clip.weights.provenance(), classes.prompts, classes.template])
    if options.background_bank:
        background = read_bank(options.background_bank, clip.weights.name)
        background_source = _bytes_digest(background.embeddings)
    else:
        background = encode_prompts(clip, classes.background, classes.background, classes.template)
        background_source = digest([clip.weights.provenance(), classes.background, classes.template])
    if background.embeddings.shape[1] != of_classes.shape[1]:
        raise UsageError(
            f"class embeddings have {of_classes.shape[1]} dimensions, background embeddings {background.embeddings.shape[1]}",
            "--text-bank and --background-bank must be of one model",
        )
    return TextEmbeddings(of_classes, background.embeddings, background.names, (class_source, background_source))


def _bytes_digest(embeddings: Tensor) -> str:
    return hashlib.sha256(embeddings.numpy().tobytes()).hexdigest()[:16]


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
