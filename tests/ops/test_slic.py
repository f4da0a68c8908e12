from __future__ import annotations

import numpy as np
import pytest

from pipelines.ops.slic import slic_superpixels


@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (20, 1), (2, 3), (17, 24)])
@pytest.mark.parametrize("segments", [1, 6, 600])
@pytest.mark.parametrize("constant", [True, False])
def test_ids_are_contiguous_from_zero(shape: tuple[int, int], segments: int, constant: bool) -> None:
    image = np.zeros((*shape, 3), np.uint8) if constant else np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    ids = slic_superpixels(image, segments, 10.0, 3)
    assert ids.dtype == np.uint16
    assert ids.shape == shape
    assert np.array_equal(np.unique(ids), np.arange(int(ids.max()) + 1))


def test_edges_are_followed_and_nothing_is_random() -> None:
    image = np.full((32, 32, 3), 20, np.uint8)
    image[:, 13:] = (230, 40, 40)  # not where a regular grid would cut
    ids = slic_superpixels(image, 16, 1.0, 10)
    assert not set(ids[:, :13].ravel()) & set(ids[:, 13:].ravel())
    assert ids.max() > 2
    assert np.array_equal(ids, slic_superpixels(image, 16, 1.0, 10))
