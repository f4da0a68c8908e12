"""Class and background embeddings of a run, from text banks or the text tower.

`TextSources` holds what the embeddings are made from: it is read, checked and identified without a model. `TextEmbeddings`
holds the embeddings, which need a model unless both banks are given.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipelines.datasets.classes import ClassList
from pipelines.encoders.super_classes import super_classes, super_embeddings
from pipelines.encoders.text import TextBank, encode_prompts, read_bank
from pipelines.encoders.weights import LoadedClip, Weights
from pipelines.errors import UsageError
from pipelines.ops.text_enrichment import attribute_centres, enriched
from pipelines.options.sources import ClipOptions
from pipelines.stores.manifest import digest


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of classes and background words, which images are compared with.

    Attributes:
        classes: ``(C, D)`` fp32, L2-normalised, in the class list's order.
        background: ``(M, D)`` fp32, L2-normalised.
        background_names: The M words.
        sources: Digests of what made the rows of classes and of background. They identify the embeddings in place of the
            values, because the text tower's last bits depend on threads and machine.
        supers: ``(S, D)`` of super-classes, or None if no part needs them.
        super_of_class: Row of ``supers`` of each class, C numbers; empty if no part needs them.
    """

    classes: Tensor
    background: Tensor
    background_names: tuple[str, ...]
    sources: tuple[str, str]
    supers: Tensor | None = None
    super_of_class: tuple[int, ...] = ()

    @property
    def all(self) -> Tensor:
        """Embeddings ``(C + M, D)``: classes, then background words."""
        return torch.cat([self.classes, self.background])

    def provenance(self) -> dict[str, str]:
        """Return digests of the sources, for manifests and checkpoints."""
        return {"class_embeddings": self.sources[0], "background_embeddings": self.sources[1]}


@dataclass(frozen=True)
class TextSources:
    """Sources of class and background embeddings; no model is loaded.

    Attributes:
        clip: The CLIP whose text tower embeds the names that are in no bank.
        classes: Names, prompts, background words.
        of_classes: Embeddings of the text bank in the class list's order, ``(C, D)``; if None, the text tower makes them.
        background: The bank of background words, or None.
        digests: Digests of what makes the rows of classes and of background.
        supers: Whether super-classes are embedded too.
        attributes: Bank of attributes, or sentences for the text tower, that enrich the class embeddings; None for no
            enrichment.
        attribute_centres: Number of clusters of the attributes.
    """

    clip: Weights
    classes: ClassList
    of_classes: Tensor | None
    background: TextBank | None
    digests: tuple[str, str]
    supers: bool = False
    attributes: TextBank | tuple[str, ...] | None = None
    attribute_centres: int = 112

    @property
    def background_names(self) -> tuple[str, ...]:
        """The names of the M background words."""
        return tuple(self.classes.background) if self.background is None else self.background.names

    def provenance(self) -> dict[str, str]:
        """Return digests of the sources, for manifests and checkpoints."""
        return {"class_embeddings": self.digests[0], "background_embeddings": self.digests[1]}

    def super_provenance(self) -> dict[str, str]:
        """Return digests of what makes the embeddings of classes and super-classes."""
        return {"class_embeddings": self.digests[0], "super_classes": digest([self.digests[0], self.classes.supers])}

    def embeddings(self, clip: LoadedClip) -> TextEmbeddings:
        """Take the embeddings in the banks and compute the others with the text tower.

        Raises:
            UsageError: Neither bank nor text tower is there, or a bank and a tower differ in width.
        """
        classes, of_classes, background = self.classes, self.of_classes, self.background
        if of_classes is None:
            of_classes = encode_prompts(clip, classes.names, classes.prompts, classes.template).embeddings  # (C, D)
        if background is None:
            background = encode_prompts(clip, classes.background, classes.background, classes.template)
        _check_widths(of_classes, background.embeddings)
        plain = of_classes
        if self.attributes is not None:
            bank = self.attributes
            if not isinstance(bank, TextBank):
                bank = encode_prompts(clip, bank, bank, "{}")
            _check_widths(of_classes, bank.embeddings, "attributes")
            of_classes = enriched(of_classes, attribute_centres(bank.embeddings, self.attribute_centres))  # (C, D)
        found = TextEmbeddings(of_classes, background.embeddings, background.names, self.digests)
        if not self.supers:
            return found
        supers = super_classes(classes, plain)
        tower = clip if clip.has_text and self.of_classes is None else None
        rows = super_embeddings(supers, plain, tower, classes.template)  # (S, E)
        return replace(found, supers=rows, super_of_class=supers.of_class)


def text_sources(clip: Weights, classes: ClassList, options: ClipOptions, supers: bool = False) -> TextSources:
    """Read and check the given banks.

    Args:
        clip: The CLIP whose text tower embeds the names that are in no bank.
        classes: Names, prompts, background words.
        options: Options that name the banks.
        supers: Whether super-classes are embedded too.

    Raises:
        UsageError: A class without embedding, or a bank of another model.
    """
    of_classes, background = None, None
    class_digest = digest([clip.provenance(), classes.prompts, classes.template])
    background_digest = digest([clip.provenance(), classes.background, classes.template])
    if options.text_bank:
        of_classes = _in_class_order(read_bank(options.text_bank, clip.name), classes, str(options.text_bank))
        class_digest = _bytes_digest(of_classes)
    if options.background_bank:
        background = _without(read_bank(options.background_bank, clip.name), classes)
        background_digest = _bytes_digest(background.embeddings)
    if of_classes is not None and background is not None:
        _check_widths(of_classes, background.embeddings)
    attributes = None
    if options.attributes:
        attributes = _attributes(options.attributes, clip.name)
        rows = _bytes_digest(attributes.embeddings) if isinstance(attributes, TextBank) else attributes
        class_digest = digest([class_digest, rows, options.attribute_centres])
    digests = class_digest, background_digest
    return TextSources(clip, classes, of_classes, background, digests, supers, attributes, options.attribute_centres)


def text_embeddings(clip: LoadedClip, classes: ClassList, options: ClipOptions) -> TextEmbeddings:
    """Read the given banks and embed the other names with the text tower.

    Raises:
        UsageError: A class without embedding, a bank of another model, or neither bank nor text tower.
    """
    return text_sources(clip.weights, classes, options).embeddings(clip)


def _without(bank: TextBank, classes: ClassList) -> TextBank:
    """Return a bank of background words without the words that are classes, as in `ClassList`."""
    kept = replace(classes, background=bank.names).background
    rows = [row for row, name in enumerate(bank.names) if name in kept]
    return bank if len(rows) == len(bank.names) or not rows else replace(bank, embeddings=bank.embeddings[rows], names=kept)


def _attributes(path: Path, model: str) -> TextBank | tuple[str, ...]:
    """Read a text bank, or the distinct lines of a text file.

    Raises:
        UsageError: There is no such file, it is neither of the two, or it has no line.
    """
    if path.suffix == ".safetensors":
        return read_bank(path, model)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"no attributes at {path}: expected a .txt or .safetensors file", "--attributes") from error
    sentences = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not sentences:
        raise UsageError(f"{path} is empty: expected a sentence a line", "--attributes")
    return sentences


def _check_widths(of_classes: Tensor, others: Tensor, what: str = "background embeddings") -> None:
    if others.shape[1] != of_classes.shape[1]:
        found = f"class embeddings have {of_classes.shape[1]} dimensions, {what} {others.shape[1]}"
        raise UsageError(found, "--text-bank, --background-bank and --attributes must be of one model")


def _bytes_digest(embeddings: Tensor) -> str:
    return hashlib.sha256(embeddings.numpy().tobytes()).hexdigest()[:16]


def _in_class_order(bank: TextBank, classes: ClassList, where: str) -> Tensor:
    rows: dict[int, int] = {}
    for row, name in enumerate(bank.names):
        try:
            rows[classes.index(name)] = row  # the class list has aliases such as COCO's own names
        except UsageError:
            continue  # a bank may hold more classes than the dataset
    missing = [name for index, name in enumerate(classes.names) if index not in rows]
    if missing:
        raise UsageError(f"{where} has no embedding of class {missing[0]!r}", "write a bank of your classes with `ssr text`")
    return bank.embeddings[[rows[index] for index in range(len(classes.names))]]
