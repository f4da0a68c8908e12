"""Words whose embeddings CLIP hardly separates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.encoders.class_embeddings import TextEmbeddings

NEAR = 0.97
"""Cosine similarity from which two words are reported, because their maps hardly differ."""
EQUAL = 0.9995
"""Cosine similarity from which two words are equal up to rounding."""


@dataclass(frozen=True)
class WordPair:
    """Two words and their cosine similarity."""

    first: str
    second: str
    similarity: float

    def __str__(self) -> str:
        return f"{self.first} / {self.second} ({self.similarity:.2f})"


def nearest_background(text: TextEmbeddings, names: Sequence[str]) -> WordPair | None:
    """Return the nearest pair of a class and a background word; None without background words.

    Args:
        text: Embeddings of classes and background words.
        names: Names of the classes.
    """
    return _nearest(text.classes @ text.background.T, names, text.background_names)


def nearest_classes(text: TextEmbeddings, names: Sequence[str]) -> WordPair | None:
    """Return the two nearest classes; None if there is only one class."""
    similarity = text.classes @ text.classes.T  # (C, C)
    return _nearest(similarity.masked_fill(torch.ones_like(similarity).triu().bool(), -2), names, names)


def _nearest(similarity: Tensor, rows: Sequence[str], columns: Sequence[str]) -> WordPair | None:
    """Return the largest entry of ``(R, C)``, with the names of its row and column."""
    if not similarity.numel() or (rows is columns and len(rows) < 2):
        return None
    row, column = divmod(int(similarity.argmax()), similarity.shape[1])
    return WordPair(rows[row], columns[column], float(similarity[row, column]))
