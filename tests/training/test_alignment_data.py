"""Batches of photos and their order."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from pipelines.training.alignment_data import AlignmentData, photo_order, steps_an_epoch

PATCHES, EMBED = 4, 3
LABELS = [(2,), (0, 1, 4), (1, 2), (4,)]


@pytest.fixture
def data() -> AlignmentData:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(len(LABELS), PATCHES, EMBED)).astype(np.float16)
    return AlignmentData(tokens, [rng.random((len(own), PATCHES), np.float32) for own in LABELS], LABELS)


def test_samples_and_their_classes(data):
    assert len(data) == 4
    assert data.samples == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)]
    assert data.classes.tolist() == [2, 0, 1, 4, 1, 2, 4]


@pytest.mark.parametrize("photos", [[0], [1], [3, 1, 0], range(4), [2, 2], []], ids=str)
@pytest.mark.parametrize("clustered", [False, True])
def test_batch(data, photos, clustered):
    clusters = [torch.arange(len(own)) + 10 * photo for photo, own in enumerate(LABELS)] if clustered else None
    batch = data.batch(photos, torch.device("cpu"), clusters)
    slots = max([len(LABELS[photo]) for photo in photos], default=0)
    assert batch.tokens.shape == (len(photos), PATCHES, EMBED)
    assert batch.cams.shape == (len(photos), slots, PATCHES)
    assert batch.classes.shape == batch.image_clusters.shape == (len(photos), slots)
    assert (batch.tokens.dtype, batch.cams.dtype) == (torch.float32, torch.float32)
    assert (batch.classes.dtype, batch.image_clusters.dtype) == (torch.int64, torch.int64)
    for row, photo in enumerate(photos):
        np.testing.assert_array_equal(batch.tokens[row].numpy(), data.tokens[photo].astype(np.float32))
        for slot in range(slots):
            filled = slot < len(LABELS[photo])
            assert batch.classes[row, slot] == (LABELS[photo][slot] if filled else -1)
            assert batch.image_clusters[row, slot] == (10 * photo + slot if filled and clustered else 0)
            expected = data.cams[photo][slot] if filled else np.zeros(PATCHES)
            np.testing.assert_array_equal(batch.cams[row, slot].numpy(), expected)


def test_a_batch_is_a_copy_of_a_memory_map(data, tmp_path):
    np.save(tmp_path / "tokens.npy", data.tokens)
    mapped = AlignmentData(np.load(tmp_path / "tokens.npy", mmap_mode="r"), data.cams, data.labels)
    batch = mapped.batch([1, 3], torch.device("cpu"))
    assert torch.equal(batch.tokens, data.batch([1, 3], torch.device("cpu")).tokens)
    batch.tokens.zero_()
    assert mapped.tokens.any()


SIZES = [(12, 4), (10, 4), (9, 4), (5, 4), (4, 4), (3, 4), (1, 4), (7, 1), (1, 1), (11, 3)]


@pytest.mark.parametrize(("photos", "batch"), SIZES)
def test_every_photo_once_an_epoch(photos, batch):
    steps = steps_an_epoch(photos, batch)
    size = min(batch, photos)
    assert (steps - 1) * size < photos <= steps * size
    order = photo_order(photos, batch, seed=0)
    for _ in range(3):
        epoch = list(islice(order, steps))
        assert all(len(rows) == size for rows in epoch)
        assert all(len(set(rows)) == size for rows in epoch)
        flat = [row for rows in epoch for row in rows]
        assert sorted(flat[:photos]) == list(range(photos))
        assert flat[photos:] == flat[: len(flat) - photos]  # filled from its own beginning


def test_every_epoch_has_an_order_of_its_own():
    batches = islice(photo_order(20, 20, seed=0), 5)
    assert len({tuple(rows) for rows in batches}) == 5


def test_order_depends_on_the_seed_alone():
    first = list(islice(photo_order(20, 6, seed=3), 9))
    np.random.seed(1)
    assert list(islice(photo_order(20, 6, seed=3), 9)) == first
    assert list(islice(photo_order(20, 6, seed=4), 9)) != first


@pytest.mark.parametrize("start", [0, 1, 4, 5, 9])
def test_skipping_steps_gives_the_same_order(start):
    whole = list(islice(photo_order(17, 4, seed=3), 14))
    assert list(islice(photo_order(17, 4, seed=3), start, 14)) == whole[start:]
