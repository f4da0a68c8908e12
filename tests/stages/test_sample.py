"""The drawn set: VOC's layout, labels that are the masks', the same bytes again."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.config import read_config
from pipelines.datasets import load_dataset
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions
from pipelines.options.stages import SampleOptions
from pipelines.sample.picture import CLASSES
from pipelines.stages import sample

SMALL = SampleOptions(train=5, val=3)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("sample")
    assert sample.run(work, SMALL).done == 8
    return work


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("split", "count"), [("train", 5), ("val", 3)])
def test_it_is_a_voc_dataset_whose_labels_are_its_masks(drawn: Path, split: str, count: int) -> None:
    root = drawn / "dataset"
    dataset = load_dataset(DatasetOptions(kind="voc", root=root, split=split, classes=root / "classes.toml"))
    assert dataset.classes.names == CLASSES
    assert len(dataset.samples) == count
    for one in dataset.samples:
        mask_path = dataset.mask_path(one.image_id)
        assert mask_path is not None
        with Image.open(one.image_path) as image, Image.open(mask_path) as mask:
            assert image.size == mask.size
            assert image.mode == "RGB"
            assert mask.mode == "P"
            assert 160 <= min(image.size) <= max(image.size) == 256
            assert tuple(value - 1 for value in np.unique(np.asarray(mask)) if value) == one.labels


def test_its_config_runs_it_with_the_embedded_models(drawn: Path) -> None:
    values, top = read_config(drawn / sample.CONFIG)
    assert top["work"].resolve() == drawn.resolve()
    assert (drawn / "dataset").samefile(values["dataset"]["root"])
    for section in ("clip", "dino"):
        assert Path(values[section]["model"]).parent == Path(values[section]["pretrained"]).parent == sample.models_folder()
    assert tomllib.loads((drawn / "dataset" / "classes.toml").read_text())["template"] == "{}"


def test_a_second_run_draws_only_what_is_missing_and_the_same(drawn: Path, tmp_path: Path) -> None:
    before = files(drawn)
    os.unlink(drawn / "dataset" / "SegmentationClass" / "train_0002.png")
    os.unlink(drawn / "dataset" / "JPEGImages" / "train_0002.jpg")
    (drawn / "dataset" / "JPEGImages" / ".train_0002.jpg.x.tmp").write_bytes(b"left by a kill")
    counts = sample.run(drawn, SMALL)
    assert (counts.done, counts.skipped) == (1, 7)
    assert files(drawn) == before
    sample.run(tmp_path, SMALL)
    assert files(tmp_path) == before


def test_another_seed_is_another_set_and_asks_for_force(tmp_path: Path) -> None:
    one = SampleOptions(train=1, val=1)
    sample.run(tmp_path, one)
    before = (tmp_path / "dataset" / "JPEGImages" / "train_0000.jpg").read_bytes()
    other = one.model_copy(update={"seed": 1})
    with pytest.raises(UsageError, match="seed"):
        sample.run(tmp_path, other)
    assert sample.run(tmp_path, other, force=True).done == 2
    assert (tmp_path / "dataset" / "JPEGImages" / "train_0000.jpg").read_bytes() != before


def test_more_pictures_are_added_and_fewer_leave_none_behind(tmp_path: Path) -> None:
    sample.run(tmp_path, SampleOptions(train=2, val=1))
    kept = (tmp_path / "dataset" / "JPEGImages" / "train_0000.jpg").read_bytes()
    sample.run(tmp_path, SampleOptions(train=1, val=1), force=True)
    assert (tmp_path / "dataset" / "JPEGImages" / "train_0000.jpg").read_bytes() == kept
    assert {path.stem for path in (tmp_path / "dataset" / "JPEGImages").iterdir()} == {"train_0000", "val_0000"}
