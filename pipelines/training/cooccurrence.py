"""Patches that heads must not learn as background, because similar patches occur in other images of the same label.

The patches that plain CLIP's CAM leaves out are trained to match background words. If the CAM covers only a part of the object,
such as the face of a person, the rest would be trained as background. Such patches occur in other images of persons, too, and
are excluded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipelines.ops.cooccurrence import neighbour_labels

BANK_OF_PHOTO = 64
"""Number of patches per image that are compared."""
BANK = 32_768
"""Number of patches of all images together that are compared; with many images, each contributes fewer."""


def unknown_patches(
    inputs: NDArray[np.float16],
    background: NDArray[np.float16],
    labels: Sequence[tuple[int, ...]],
    weight: float,
    neighbours: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[NDArray[np.float32]]:
    """Estimate how much each patch may be of one of its image's classes, from similar patches in other images.

    For label c the estimate is ``weight * (s - p) * (1 - b)``, with the share s of neighbours whose image has c, the share p of
    all images that have c, and the probability b of the likeliest background word. The label with the largest value counts.

    Args:
        inputs: Patches that enter CLIP's last block, ``(P, T, D)``, drawn at random from each image; may be a memory map.
        background: b, ``(P, T)`` in [0, 1].
        labels: Class indices of each image, at least one.
        weight: Weight of the estimate.
        neighbours: Number of similar patches that are counted.
        device: Device of the comparison.
        dtype: Precision of the comparison.

    Returns:
        ``(T,)`` in [0, 1] for each image.
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
