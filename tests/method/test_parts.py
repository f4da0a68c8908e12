"""Parts that a plugin gets wrong: one line names the part, and what it returned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.datasets.base import Sample
from pipelines.errors import SsrError, UsageError
from pipelines.method.affinity import AFFINITIES
from pipelines.method.column_masks import COLUMN_MASKS
from pipelines.method.composition import column_mask, initial_cams, refined_cams
from pipelines.method.evidence import Evidence, Part, always
from pipelines.method.parts_in_use import readout_of
from pipelines.method.photo import Photo, by_photo
from pipelines.method.readouts import READOUTS
from pipelines.options.stages import CamsOptions, RefineOptions

BATCH = Evidence((3, 4), ((0, 3), (), (5,)))
MAPS = torch.rand(3, 12)
REFINE = RefineOptions(affinity="mine", superpixel_mask="none")


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (torch.rand(3, 3, 4), r"float32 \(3, 3, 4\)"),
        (torch.rand(2, 12), r"float32 \(2, 12\)"),
        (torch.rand(3, 12) > 0, r"bool \(3, 12\)"),
        (np.zeros((3, 12)), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_maps_of_another_form_are_refused(monkeypatch, returned, found):
    monkeypatch.setitem(READOUTS, "mine", Part(lambda evidence, options: returned, always()))
    with pytest.raises(SsrError, match=rf"^read-out 'mine' returned {found}, expected float32 .* \(3, 12\)"):
        initial_cams(BATCH, CamsOptions(readout="mine"))


def test_an_affinity_and_a_mask_of_another_form_are_refused(monkeypatch):
    monkeypatch.setitem(AFFINITIES, "mine", Part(lambda *_: torch.rand(3, 12, 12).double(), always()))
    with pytest.raises(SsrError, match=r"affinity 'mine' returned float64 \(3, 12, 12\)"):
        refined_cams(BATCH, MAPS, REFINE)
    monkeypatch.setitem(COLUMN_MASKS, "mine", Part(lambda evidence, maps, options: maps, always()))
    with pytest.raises(SsrError, match=r"column mask 'mine' returned float32 \(3, 12\), expected bool \(3, 12\)"):
        column_mask(BATCH, MAPS, RefineOptions(superpixel_mask="mine"))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Part(lambda *_: MAPS, always(), ("dense_scal",)), "names the option 'dense_scal', .* did you mean 'dense_scale'?"),
        (
            Part(lambda *_: MAPS, always("tokens_clz")),
            "names the field of the evidence 'tokens_clz', .* did you mean 'tokens_cls'?",
        ),
    ],
)
def test_names_that_do_not_exist_are_refused(monkeypatch, part: Part, said: str) -> None:
    monkeypatch.setitem(READOUTS, "mine", part)
    with pytest.raises(UsageError, match=f"read-out 'mine' {said}"):
        readout_of(CamsOptions(readout="mine"))


@pytest.mark.parametrize("spoil", [np.nan, np.inf], ids=str)
def test_maps_that_are_no_numbers_are_refused(spoil: float) -> None:
    photos = [Photo(Sample(name, Path(name), labels), (9, 9), (3, 4), ()) for name, labels in (("a", (0, 3)), ("b", (5,)))]
    maps = MAPS.half().numpy()
    assert [len(own) for own in by_photo(maps, photos)] == [2, 1]
    maps[2, 5] = spoil
    with pytest.raises(SsrError, match="the maps of b hold NaN or infinity"):
        by_photo(maps, photos)
