"""The photos that CMPA's heads learn from: a few patches of each, the CAMs there, and its labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.training.alignment_loss import Batch


@dataclass(frozen=True)
class AlignmentData:
    """All photos that have a class.

    Attributes:
        tokens: ``(P, T, E)`` fp16; may be a memory map.
        cams: ``(K, T)`` fp32 of each photo, in [0, 1].
        labels: Class indices of each photo, at least one.
        image_ids: Names of the photos; empty where nobody asks.
        unknown: ``(T,)`` fp32 of each photo, patches that are no background (`pipelines.training.cooccurrence`); None: there
            are no such patches.
    """

    tokens: NDArray[np.float16]
    cams: Sequence[NDArray[np.float32]]
    labels: Sequence[tuple[int, ...]]
    image_ids: tuple[str, ...] = ()
    unknown: Sequence[NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def samples(self) -> list[tuple[int, int]]:
        """All (photo, slot) pairs, photo by photo."""
        return [(photo, slot) for photo, labels in enumerate(self.labels) for slot in range(len(labels))]

    @property
    def classes(self) -> Tensor:
        """Class of each of `samples`, ``(S,)`` int64."""
        return torch.tensor([self.labels[photo][slot] for photo, slot in self.samples], dtype=torch.int64)

    def batch(self, photos: Sequence[int], device: torch.device, clusters: Sequence[Tensor] | None = None) -> Batch:
        """Gather photos.

        Args:
            photos: Rows.
            device: Where to put them.
            clusters: Image prototype of each photo's samples, if k-means made them.

        Returns:
            fp32 tensors, padded to the largest number of classes.
        """
        slots = max((len(self.labels[photo]) for photo in photos), default=0)
        count = self.tokens.shape[1]
        cams = torch.zeros(len(photos), slots, count)  # (B, K, T)
        classes = torch.full((len(photos), slots), -1)  # (B, K)
        image_clusters = torch.zeros(len(photos), slots, dtype=torch.int64)  # (B, K)
        for row, photo in enumerate(photos):
            filled = len(self.labels[photo])
            cams[row, :filled] = torch.from_numpy(self.cams[photo])
            classes[row, :filled] = torch.tensor(self.labels[photo])
            if clusters is not None:
                image_clusters[row, :filled] = clusters[photo]
        tokens = torch.from_numpy(self.tokens[list(photos)].astype(np.float32))  # (B, T, E)
        batch = Batch(tokens.to(device), cams.to(device), classes.to(device), image_clusters.to(device))
        if self.unknown is None:
            return batch
        unknown = torch.from_numpy(np.stack([self.unknown[photo] for photo in photos]))  # (B, T)
        return dataclasses.replace(batch, unknown=unknown.to(device))


def photo_order(photos: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Batches without end: every epoch a new order that depends on seed and epoch alone.

    An epoch's last batch is filled up from its own beginning, so that BatchNorm never sees a batch of another size; the
    whole set is one batch if it is smaller.

    Args:
        photos: Number of photos, at least 1.
        batch: Photos a batch.
        seed: Of the order.

    Yields:
        ``min(batch, photos)`` rows.
    """
    batch = min(batch, photos)
    epoch = 0
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(photos).tolist()
        order += order[: -photos % batch]
        for start in range(0, len(order), batch):
            yield order[start : start + batch]
        epoch += 1


def steps_an_epoch(photos: int, batch: int) -> int:
    """Batches that `photo_order` makes of one epoch."""
    return -(-photos // min(batch, photos))
