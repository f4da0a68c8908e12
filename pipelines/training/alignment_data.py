"""The training data of CMPA's heads: a few patches of each image, the CAMs there, and its labels."""

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
    """All images that have a class.

    Attributes:
        tokens: ``(P, T, E)`` fp16; may be a memory map.
        cams: ``(K, T)`` fp32 of each image, in [0, 1].
        labels: Class indices of each image, at least one.
        image_ids: Names of the images; empty if nothing reads them.
        unknown: ``(T,)`` fp32 of each image: patches that are not to be learnt as background
            (`pipelines.training.cooccurrence`); None if there are no such patches.
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
        """Return all (image, slot) pairs, image by image."""
        return [(photo, slot) for photo, labels in enumerate(self.labels) for slot in range(len(labels))]

    @property
    def classes(self) -> Tensor:
        """Return the class of each of `samples`, ``(S,)`` int64."""
        return torch.tensor([self.labels[photo][slot] for photo, slot in self.samples], dtype=torch.int64)

    def batch(self, photos: Sequence[int], device: torch.device, clusters: Sequence[Tensor] | None = None) -> Batch:
        """Gather a batch of images.

        Args:
            photos: Rows of the images.
            device: Device of the batch.
            clusters: Image prototype of each image's samples, if k-means made them.

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
    """Yield batches without end; the order of every epoch depends on seed and epoch alone.

    An epoch's last batch is filled up with the epoch's first images, so that BatchNorm gets batches of one size. A set that is
    smaller than a batch is one batch.

    Args:
        photos: Number of images, at least 1.
        batch: Images per batch.
        seed: Seed of the order.

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
    """Return the number of batches that `photo_order` makes of one epoch."""
    return -(-photos // min(batch, photos))
