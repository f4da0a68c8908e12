from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.stores.mask_store import write_mask, written_masks

PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 16)])
def test_reads_back_with_indices_and_palette(tmp_path: Path, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_mask(tmp_path / "a.png", mask, PALETTE)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), mask)
        assert picture.getpalette() == PALETTE.ravel().tolist()
        assert np.array_equal(np.asarray(picture.convert("RGB")), PALETTE[mask])
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_few_classes_keep_the_whole_palette_and_any_strides(tmp_path: Path) -> None:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3).T % 2
    write_mask(tmp_path / "a.png", mask, PALETTE)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), mask)
        assert picture.getpalette() == PALETTE.ravel().tolist()


def test_written_masks(tmp_path: Path) -> None:
    assert written_masks(tmp_path / "absent") == set()
    for name in ("2007_000032", "a.b"):
        write_mask(tmp_path / f"{name}.png", np.zeros((2, 2), np.uint8), PALETTE)
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".c.png.x.tmp").touch()
    assert written_masks(tmp_path) == {"2007_000032", "a.b"}
