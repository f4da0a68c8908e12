"""Labels of look-alikes against a loop; patches that heads must not learn as background, on made photos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.ops.cooccurrence import neighbour_labels
from pipelines.training.cooccurrence import unknown_patches

CPU = torch.device("cpu")


@pytest.mark.parametrize("barred", [None, torch.arange(12) % 3 == 0], ids=["all", "some"])
@pytest.mark.parametrize("neighbours", [1, 4, 50])
def test_same_as_a_loop(neighbours: int, barred: torch.Tensor | None) -> None:
    draw = torch.Generator().manual_seed(0)
    patches, bank = (F.normalize(torch.randn(count, 6, generator=draw), dim=1) for count in (5, 12))
    present = (torch.rand(12, 3, generator=draw) > 0.5).float()
    found = neighbour_labels(patches, bank, present, neighbours, barred)
    for patch, shares in zip(patches, found, strict=True):
        others = [row for row in range(12) if barred is None or not barred[row]]
        others.sort(key=lambda row: -float(torch.dot(patch, bank[row])))
        nearest = others[:neighbours]
        for label in range(3):
            assert shares[label] == pytest.approx(sum(float(present[row, label]) for row in nearest) / len(nearest))


def test_a_patch_without_others_has_no_evidence() -> None:
    one = torch.ones(2, 2)
    assert not neighbour_labels(one, one, one, 3, torch.tensor([True, True])).any()


FACE, CLOTHES, GRASS = np.eye(3, 8, dtype=np.float32) * 5
PERSONS, DOGS = 6, 6


def _photos(words: float = 0.0) -> list[np.ndarray]:
    """Photos of persons in clothes on grass, and of dogs on grass -> what is unknown of (face or grass, clothes, grass)."""
    noise = np.random.default_rng(0).normal(0, 0.1, (PERSONS + DOGS, 3, 8))
    patches = [np.stack([FACE, CLOTHES, GRASS] if photo < PERSONS else [GRASS] * 3) for photo in range(PERSONS + DOGS)]
    background = np.full((PERSONS + DOGS, 3), words, np.float16)
    labels = [(0,)] * PERSONS + [(1,)] * DOGS
    return unknown_patches((np.stack(patches) + noise).astype(np.float16), background, labels, 2.0, 4, CPU, torch.float32)


def test_what_recurs_with_a_label_is_unknown_and_what_recurs_everywhere_is_background() -> None:
    photos = _photos()
    for face, clothes, grass in photos[:PERSONS]:
        assert face == clothes == 1  # all look-alikes are of persons, half of the photos are: 2 * (1 - .5)
        assert grass < 0.6
    assert _photos(words=0.5)[0][1] == pytest.approx(0.5)  # a background word has half the say
    assert not np.any(_photos(words=1.0))


def test_one_photo_proves_nothing_about_itself() -> None:
    inputs = np.random.default_rng(0).normal(size=(1, 4, 8)).astype(np.float16)
    (only,) = unknown_patches(inputs, np.zeros((1, 4), np.float16), [(0, 1)], 2.0, 40, CPU, torch.float32)
    assert only.shape == (4,)
    assert not only.any()


def test_many_photos_share_a_bank_of_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.training.cooccurrence.BANK", 8)
    assert len(_photos()) == PERSONS + DOGS
    assert all(0 <= value <= 1 for photo in _photos() for value in photo)
