"""Patches that heads must not learn as background, because other photos of the same label have their like.

What plain CLIP's CAM leaves out is taught to match background words. Where the CAM sees but a part of the object, as a face
of a person, the rest would be taught to be background; such patches are found in other photos of persons, and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipelines.ops.cooccurrence import neighbour_labels

BANK_OF_PHOTO = 64
"""Patches of a photo that are looked through."""
BANK = 32_768
"""Patches of all photos together that are looked through; each photo has fewer if there are many."""


def unknown_patches(
    inputs: NDArray[np.float16],
    background: NDArray[np.float16],
    labels: Sequence[tuple[int, ...]],
    weight: float,
    neighbours: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[NDArray[np.float32]]:
    """How much each patch may be of one of its photo's classes, by its look-alikes in other photos.

    For label c it is ``weight * (share of the neighbours whose photo has c - share of all photos that have c) * (1 - b)``
    with the probability b of the likeliest background word; of the photo's labels, the largest counts.

    Args:
        inputs: Patches that enter CLIP's last block, ``(P, T, D)``, drawn at random from each photo; may be a memory map.
        background: b, ``(P, T)`` in [0, 1].
        labels: Class indices of each photo, at least one.
        weight: Of the evidence.
        neighbours: Look-alikes that are counted.
        device: Where to compare them.
        dtype: Of the comparison.

    Returns:
        ``(T,)`` in [0, 1] a photo.
    """
    photos, a_photo = len(labels), max(1, min(BANK_OF_PHOTO, inputs.shape[1], BANK // len(labels)))
    chosen = range(photos) if photos * a_photo <= BANK else np.random.default_rng(0).permutation(photos)[:BANK].tolist()
    present = torch.zeros(photos, 1 + max(label for of_photo in labels for label in of_photo), device=device)  # (P, C)
    for photo, of_photo in enumerate(labels):
        present[photo, list(of_photo)] = 1
    prior = present.mean(dim=0)  # (C,)
    bank = torch.cat([torch.from_numpy(inputs[photo, :a_photo].astype(np.float32)) for photo in chosen]).to(device)  # (V, D)
    mean = bank.mean(dim=0)  # (D,)
    bank = F.normalize(bank - mean, dim=1).to(dtype)
    owner = torch.tensor(chosen, device=device).repeat_interleave(a_photo)  # (V,)
    owner_labels = present[owner]  # (V, C)
    shares: list[NDArray[np.float32]] = []
    for photo, of_photo in enumerate(labels):
        patches = torch.from_numpy(inputs[photo].astype(np.float32)).to(device)  # (T, D)
        patches = F.normalize(patches - mean, dim=1).to(dtype)
        found = neighbour_labels(patches, bank, owner_labels[:, of_photo], neighbours, owner == photo)  # (T, K)
        evidence = (found - prior[list(of_photo)]).clamp_min(0).amax(dim=1).cpu().numpy()  # (T,)
        shares.append(np.clip(weight * evidence * (1 - background[photo].astype(np.float32)), 0, 1))
    return shares
