"""Label maps of batches of tensors are those that `pipelines.ops.label_map` makes of each photo by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.ops.label_map import label_map, with_background
from pipelines.ops.online_label_map import background_first, online_label_map

LABELS: dict[str, list[tuple[int, ...]]] = {
    "one each": [(3,), (0,), (19,)],
    "empty slots": [(2, 7, 19), (), (0,), (4, 5)],
    "nobody has a class": [(), ()],
    "one photo without": [()],
    "many": [tuple(range(20)), (1,)],
}


def padded(labels: list[tuple[int, ...]]) -> Tensor:
    slots = max(len(own) for own in labels)
    return torch.tensor([[*own, *[-1] * (slots - len(own))] for own in labels], dtype=torch.int64).view(len(labels), slots)


def drawn(labels: list[tuple[int, ...]], coarse: bool = False) -> Tensor:
    """Noise in empty slots too: it must not count. Coarse values make ties."""
    generator = torch.Generator().manual_seed(len(labels))
    maps = torch.rand(len(labels), max(len(own) for own in labels), 9, 7, generator=generator)
    return (maps * 4).round() / 4 if coarse else maps


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("coarse", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("power", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("confidence", [0.0, 0.5, 0.9])
def test_same_as_one_photo_at_a_time(name, coarse, power, confidence):
    labels = LABELS[name]
    maps, classes = drawn(labels, coarse), padded(labels)
    scores = background_first(maps, classes >= 0, power)
    found = online_label_map(scores, classes, confidence)
    assert scores.shape == (len(labels), classes.shape[1] + 1, 9, 7)
    assert found.dtype == torch.int64
    for image, own in enumerate(labels):
        theirs = with_background(maps[image, : len(own)].numpy(), power)
        np.testing.assert_allclose(scores[image, : len(own) + 1].numpy(), theirs, rtol=1e-6, atol=1e-7)
        assert not scores[image, len(own) + 1 :].any()
        expected = label_map(scores[image, : len(own) + 1].numpy(), own, confidence)
        assert np.array_equal(found[image].numpy(), expected)
    if confidence == 0.9 and name == "many":
        assert (found == 255).any()
    if not coarse and confidence == 0 and any(labels):
        assert len(found.unique()) > 1


def test_an_empty_slot_never_wins_even_where_all_scores_are_zero():
    scores = torch.zeros(1, 3, 2, 2)
    scores[0, 2] = 5.0
    found = online_label_map(scores, torch.tensor([[4, -1]]))
    assert torch.equal(found, torch.zeros(1, 2, 2, dtype=torch.int64))


def test_scores_are_not_changed():
    scores, classes = torch.rand(1, 3, 2, 2), torch.tensor([[4, -1]])
    before = scores.clone()
    online_label_map(scores, classes, 0.5)
    background_first(scores, torch.tensor([[True, False, True]]), 2.0)
    assert torch.equal(scores, before)


def test_background_stays_in_its_range():
    """Maps that rounding has carried above 1 give no number that is none."""
    scores = background_first(torch.full((1, 1, 2, 2), 1.0 + 1e-6), torch.tensor([[True]]), 0.5)
    assert torch.equal(scores[:, 0], torch.zeros(1, 2, 2))
