"""The frozen encoders of a run, built from weights. Only what the parts in use need is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.encoders.class_embeddings import TextEmbeddings, TextSources
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.weights import Weights, build_clip, fetch_clip, fetch_dino
from pipelines.execution.devices import resolve_dtype
from pipelines.method.aligned import AlignedText
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.evidence import DINO_NEEDS, Needs, TextFeatures
from pipelines.models.alignment_file import Alignment, read_alignment
from pipelines.options.sources import LONG_SIDE
from pipelines.options.stages import CamsOptions


@dataclass(frozen=True)
class Sources:
    """The files and names that encoders are built from, before anything is loaded.

    Attributes:
        clip: CLIP's weights.
        dino: DINO's weights; None if no part needs DINO.
        text: Banks and prompts; None if no part needs text.
        alignment: File of alignment heads; None for plain CLIP.
        long_side: Pixels of the long side at which larger images enter the encoders; 0 = any.
    """

    clip: Weights
    dino: Weights | None = None
    text: TextSources | None = None
    alignment: Path | None = None
    long_side: int = LONG_SIDE

    def fetch(self) -> None:
        """Download the weights that are not in the cache, so that a failure comes before any existing result is removed.

        Raises:
            SsrError: The hub cannot be reached, and the weights are not in the cache.
        """
        fetch_clip(self.clip)
        if self.dino is not None:
            fetch_dino(self.dino)


class FrozenModels:
    """The models of some `Sources`, loaded once. `Encoders` for different needs are made from them.

    Args:
        sources: What to load.
        device: Where to run.
        precision: Precision of all blocks but the last: fp32, bf16, or auto for what suits the device.

    Attributes:
        clip: The frozen CLIP.
        dino: The frozen DINO, or None.
        embeddings: Class and background embeddings, or None.
        alignment: Alignment heads as read from their file, or None.
    """

    def __init__(self, sources: Sources, device: torch.device, precision: str) -> None:
        dtype = resolve_dtype(precision, device)
        loaded = build_clip(sources.clip)
        self.embeddings: TextEmbeddings | None = sources.text.embeddings(loaded) if sources.text is not None else None
        self.alignment: Alignment | None = None
        if sources.alignment is not None and sources.text is not None and self.embeddings is not None:
            self.alignment = read_alignment(sources.alignment, sources.clip, sources.text.classes, self.embeddings)
        self._long_side = sources.long_side
        self.clip = ClipEncoder(loaded, device, dtype)
        self.dino = DinoEncoder(sources.dino, device, dtype) if sources.dino is not None else None

    def encoders(self, needs: Needs, blocks: Blocks, cams: CamsOptions | None = None) -> Encoders:
        """Make encoders that yield what some parts need.

        Args:
            needs: Needs of the parts in use.
            blocks: Numbers of blocks to read.
            cams: How aligned CAMs are read out; necessary for ``alignment`` alone.
        """
        text = aligned = None
        if self.embeddings is not None:
            rows, supers = self.embeddings.all.to(self.clip.device), self.embeddings.supers
            supers = None if supers is None else supers.to(self.clip.device)
            text = TextFeatures(
                rows, len(self.embeddings.classes), self.clip.logit_scale, supers, self.embeddings.super_of_class
            )
        if self.alignment is not None and text is not None and cams is not None:
            aligned = AlignedText(self.alignment, text, cams)
        return Encoders(needs, self.clip, self.dino if needs & DINO_NEEDS else None, text, aligned, blocks, self._long_side)
