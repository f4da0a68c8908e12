from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.errors import SsrError
from pipelines.ops.crf import CrfParameters, dense_crf

needs_crf = pytest.mark.skipif(find_spec("pydensecrf") is None, reason="pydensecrf2 is not installed")


def _two_regions() -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    right = np.zeros((24, 30), bool)
    right[:, 14:] = True
    image = np.where(right[..., None], np.uint8(200), np.uint8(40)) + rng.integers(0, 3, (24, 30, 3), np.uint8)
    wrong = rng.random(right.shape) < 0.15
    share = np.where(right ^ wrong, 0.7, 0.3).astype(np.float32)
    return image, np.stack([1 - share, share]), right


@needs_crf
def test_noise_goes_and_the_edge_stays() -> None:
    image, scores, truth = _two_regions()
    posterior = dense_crf(image, scores, CrfParameters())
    assert posterior.dtype == np.float32
    assert posterior.shape == scores.shape
    assert ((scores.argmax(0) == 1) != truth).mean() > 0.1
    assert ((posterior.argmax(0) == 1) != truth).mean() < 0.01
    np.testing.assert_allclose(posterior.sum(0), 1, atol=1e-4)


@needs_crf
def test_inputs_may_be_read_only_and_stay_as_they_were() -> None:
    image, scores, _ = _two_regions()
    copies = image.copy(), scores.copy()
    image.setflags(write=False)
    scores.setflags(write=False)
    frozen = dense_crf(image, scores, CrfParameters(iterations=2))
    assert np.array_equal(image, copies[0])
    assert np.array_equal(scores, copies[1])
    flipped = np.ascontiguousarray(image[:, ::-1])[:, ::-1], np.ascontiguousarray(scores[..., ::-1])[..., ::-1]
    assert np.array_equal(dense_crf(*flipped, CrfParameters(iterations=2)), frozen)  # strides do not matter


@needs_crf
def test_scores_of_zero_do_not_become_infinite() -> None:
    image, scores, _ = _two_regions()
    assert np.isfinite(dense_crf(image, np.round(scores), CrfParameters(iterations=1))).all()


@needs_crf
def test_weights_of_zero_change_nothing() -> None:
    image, scores, _ = _two_regions()
    posterior = dense_crf(image, scores, CrfParameters(gaussian_compat=0, bilateral_compat=0))
    np.testing.assert_allclose(posterior, scores, atol=1e-4)


def test_background_alone_needs_no_crf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    posterior = dense_crf(np.zeros((3, 4, 3), np.uint8), np.full((1, 3, 4), 0.2, np.float32), CrfParameters())
    assert posterior.tolist() == np.ones((1, 3, 4)).tolist()


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    image, scores, _ = _two_regions()
    with pytest.raises(SsrError, match=r"pip install 'ssr-wsss\[crf\]'"):
        dense_crf(image, scores, CrfParameters())
