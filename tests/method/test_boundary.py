"""Boundary refinement: each entry against its operation called by hand, at the resolution that the options ask for."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import SsrError, UsageError
from pipelines.method import boundary
from pipelines.method.boundary import boundary_name, boundary_note, boundary_of, label_map_values, refined_scores
from pipelines.method.label_maps import pseudo_mask
from pipelines.ops.crf import CrfParameters, dense_crf
from pipelines.ops.label_map import resize_maps, with_background
from pipelines.ops.par import pixel_adaptive_refinement, scaled_dilations
from pipelines.options.stages import RefineOptions
from pipelines.plugins import VARIABLE, Table

Array = NDArray[np.float32]
needs_crf = pytest.mark.skipif(find_spec("pydensecrf") is None, reason="pydensecrf2 is not installed")
SIZE = (36, 52)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    right = np.zeros(SIZE, bool)
    right[:, 30:] = True
    return Image.fromarray(np.where(right[..., None], np.uint8(200), np.uint8(40)) + rng.integers(0, 3, (*SIZE, 3), np.uint8))


@pytest.fixture(scope="module")
def maps() -> NDArray[np.float16]:
    return np.random.default_rng(1).random((2, 4, 6)).astype(np.float16)


def crf_by_hand(image: NDArray[np.uint8], scores: Array, scale: float) -> Array:
    return dense_crf(image, scores, CrfParameters(4, bilateral_sxy=20 * scale))


def par_by_hand(image: NDArray[np.uint8], scores: Array, scale: float) -> Array:
    pixels = torch.tensor(image).permute(2, 0, 1)[None]
    return pixel_adaptive_refinement(pixels, torch.tensor(scores)[None], scaled_dilations((1, 3, 8), scale), 4)[0].numpy()


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
@pytest.mark.parametrize(("name", "by_hand"), [pytest.param("crf", crf_by_hand, marks=needs_crf), ("par", par_by_hand)])
def test_pseudo_masks_are_those_made_by_hand(photo, maps, name, by_hand, scale):
    options = RefineOptions(
        boundary=name, background_power=3, boundary_background_power=1.5,
        crf_iterations=4, crf_scale=scale, crf_bilateral_sxy=20,
        par_iterations=4, par_scale=scale, par_dilations=(1, 3, 8),
    )  # fmt: skip
    mask, scores = pseudo_mask(maps, (2, 7), SIZE, options, lambda: photo)
    height, width = round(36 * scale), round(52 * scale)
    small = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
    expected = resize_maps(by_hand(small, with_background(resize_maps(maps, (height, width)), 1.5), scale), SIZE)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert np.array_equal(mask, np.array([0, 3, 8])[expected.argmax(0)])
    without, _ = pseudo_mask(maps, (2, 7), SIZE, options.model_copy(update={"boundary": "none"}), lambda: photo)
    assert (mask != without).any()


def test_par_of_a_large_photo_runs_on_a_smaller_one(photo, maps, monkeypatch):
    """Its memory is bounded: 48 weights a pixel."""
    seen: list[tuple[int, ...]] = []
    entry = boundary.BOUNDARY["par"]
    spy = replace(entry, call=lambda scores, *rest: seen.append(scores.shape) or entry.call(scores, *rest))
    table = Table("boundary refinement", boundary.Boundary, boundary.BOUNDARY | {"par": spy})
    monkeypatch.setattr(boundary, "BOUNDARY", table)
    monkeypatch.setattr(boundary, "PAR_LONG_SIDE", 13)
    mask, _ = pseudo_mask(maps, (2, 7), SIZE, RefineOptions(boundary="par", par_scale=1), lambda: photo)
    assert seen == [(3, 9, 13)]
    assert mask.shape == SIZE


@pytest.mark.parametrize(
    ("asked", "installed", "made"),
    [("auto", True, "crf"), ("auto", False, "par"), ("par", True, "par"), ("crf", False, "crf"), ("none", False, "none")],
)
def test_auto_takes_what_is_installed_and_says_so(monkeypatch, asked, installed, made):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object() if installed else None)
    options = RefineOptions(boundary=asked)
    assert boundary_name(options) == made
    note = boundary_note(options)
    assert note == (
        f"boundary refinement auto is {made}: pydensecrf2 is {'' if installed else 'not '}installed"
        if asked == "auto"
        else None
    )
    values = label_map_values(options, "background_power")
    assert values["boundary"] == made, "a manifest names what was used"
    keys = {"crf": 8, "par": 4, "none": 0}[made]
    assert len(values) == 2 + keys


def test_a_plugin_adds_an_entry_and_an_unknown_name_is_one_line(photo, maps, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError, match="--boundary: no boundary refinement 'crv': expected one of none, crf, par; did you"):
        boundary_of(RefineOptions(boundary="crv"))
    monkeypatch.setitem(boundary.BOUNDARY, "flat", boundary.Boundary(lambda scores, *_: np.ones_like(scores)))
    assert (
        refined_scores(lambda at: maps, SIZE, RefineOptions(boundary="flat"), lambda: photo, "cpu").tolist()
        == np.ones_like(maps).tolist()
    )


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda scores, *_: scores[:1], r"shape \(1, 36, 52\), expected finite scores \(3, 36, 52\)"),
        (lambda scores, *_: scores[:, 1:], r"shape \(3, 35, 52\)"),
        (lambda scores, *_: np.where(scores > 0.5, np.nan, scores), "NaN or infinity"),
        (lambda scores, *_: None, r"shape \(\)"),
    ],
)
def test_a_plugin_that_returns_something_else_is_refused(photo, monkeypatch, call, found):
    monkeypatch.setitem(boundary.BOUNDARY, "mine", boundary.Boundary(call))
    scores = np.random.default_rng(0).random((3, *SIZE), np.float32)
    with pytest.raises(SsrError, match=f"boundary refinement 'mine' returned {found}"):
        refined_scores(lambda at: scores, SIZE, RefineOptions(boundary="mine"), lambda: photo, "cpu")


def test_a_photo_without_classes_is_not_opened(maps):
    mask, _ = pseudo_mask(maps[:0], (), SIZE, RefineOptions(boundary="par"), pytest.fail)
    assert not mask.any()
