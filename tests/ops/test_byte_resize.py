from __future__ import annotations

import platform

import numpy as np
import pytest

from pipelines.ops.byte_resize import resized_bytes

SIZES = [(1, 1), (1, 9), (7, 5), (32, 48), (33, 47), (61, 90), (130, 3), (375, 500)]


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="OpenCV rounds differently elsewhere")
@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("new", SIZES)
def test_it_is_opencv(old: tuple[int, int], new: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    assert np.array_equal(resized_bytes(pixels, new), cv2.resize(pixels, new[::-1]))


def test_a_step_becomes_a_ramp() -> None:
    pixels = np.array([[[0]], [[200]]], np.uint8)  # (2, 1, 1)
    assert resized_bytes(pixels, (4, 1)).ravel().tolist() == [0, 50, 150, 200]
