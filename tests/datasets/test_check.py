from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipelines.datasets import load_dataset
from pipelines.datasets.base import Dataset
from pipelines.datasets.check import check_dataset
from pipelines.options.sources import DatasetOptions


@pytest.fixture
def dataset(tmp_path: Path, photo: Callable[..., Path], write: Callable[[Path, str], Path]) -> Dataset:
    for name in ("good", "small_mask", "no_mask", "bad_mask"):
        photo(tmp_path / f"images/{name}.jpg", (6, 4))
    write(tmp_path / "images/broken.jpg", "no image")
    photo(tmp_path / "masks/good.png", (6, 4), "P")
    photo(tmp_path / "masks/small_mask.png", (4, 6), "P")
    write(tmp_path / "masks/bad_mask.png", "")
    rows = {"good": "cat;dog", "small_mask": "cat", "no_mask": "", "bad_mask": "cat", "broken": "cat", "gone": "cow"}
    write(tmp_path / "labels.csv", "image,labels\n" + "".join(f"{key},{names}\n" for key, names in rows.items()))
    return load_dataset(DatasetOptions(kind="folder", root=tmp_path))


def test_images_only(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **rest: (opened.append(Path(path)), real(path, **rest))[1])
    report = check_dataset(dataset)
    assert (report.images, report.class_counts) == (6, {"cat": 4, "cow": 1, "dog": 1})
    assert (report.missing, report.unlabelled) == (("gone",), ("no_mask",))
    assert [key for key, _ in report.unreadable] == ["broken"]
    assert "broken.jpg: expected JPEG" in report.unreadable[0][1]
    assert (report.missing_masks, report.size_mismatches, report.ok) == (None, None, False)
    assert {path.parent.name for path in opened} == {"images"}


def test_masks_where_asked(dataset: Dataset) -> None:
    report = check_dataset(dataset, open_masks=True)
    assert report.missing_masks == ("no_mask",)
    assert report.near_mask == ""
    (dataset.root / "masks/bad_mask.png").rename(dataset.root / "masks/no_mask.jpg")
    near = check_dataset(dataset, open_masks=True).near_mask
    assert near == "; did you mean 'no_mask.jpg'? a mask is a PNG of its image's name"
    (dataset.root / "masks/no_mask.jpg").rename(dataset.root / "masks/bad_mask.png")
    assert report.size_mismatches is not None
    assert [key for key, _ in report.size_mismatches] == ["small_mask", "bad_mask"]
    assert report.size_mismatches[0][1] == "image 6x4, mask 4x6 (width x height)"
    assert "bad_mask.png: expected JPEG, PNG, WEBP, BMP, TIFF, found an empty file" in report.size_mismatches[1][1]


def test_real_photos_are_sound(shared_data: Path) -> None:
    root = shared_data / "data/voc12-mini/VOCdevkit/VOC2012"
    report = check_dataset(load_dataset(DatasetOptions(root=root, split="val")), open_masks=True)
    assert (report.images, report.ok, report.unlabelled, report.missing_masks) == (80, True, (), ())
