from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.datasets import load_dataset
from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.classes import ClassList
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions

CLASSES = ClassList(("cat", "dog"), ("cat", "dog"), ())
DATASET = Dataset(
    "folder", Path("/a"), "train", CLASSES, (Sample("x", Path("/a/x.jpg"), (0,)), Sample("y", Path("/a/y.jpg"), ())), None
)


@pytest.mark.parametrize(
    "other",
    [
        replace(DATASET, classes=ClassList(("cat", "cow"), ("cat", "cow"), ())),
        replace(DATASET, samples=DATASET.samples[:1]),
        replace(DATASET, samples=(replace(DATASET.samples[0], labels=(0, 1)), DATASET.samples[1])),
        replace(DATASET, samples=(replace(DATASET.samples[0], image_id="z"), DATASET.samples[1])),
    ],
)
def test_digest_follows_classes_ids_and_labels(other: Dataset) -> None:
    assert other.digest() != DATASET.digest()


def test_digest_knows_no_paths_and_is_stable() -> None:
    moved = tuple(replace(sample, image_path=Path("/b") / sample.image_path.name) for sample in DATASET.samples)
    assert replace(DATASET, root=Path("/b"), split="val", samples=moved, mask_folder=Path("/b")).digest() == DATASET.digest()
    assert DATASET.digest() == "376602b831aec6782e2a77a771cf49f0702feacf266f96b8b79725eda332a28b"


def test_mask_path_needs_no_file(tmp_path: Path) -> None:
    assert DATASET.mask_path("x") is None
    assert replace(DATASET, mask_folder=tmp_path).mask_path("x") == tmp_path / "x.png"


@pytest.mark.parametrize("kind", ["voc", "coco", "folder"])
def test_load_dataset_dispatches_and_asks_for_a_root(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found no dataset root.*--root"):
        load_dataset(DatasetOptions.model_validate({"kind": kind}))
    with pytest.raises(UsageError, match="--root"):
        load_dataset(DatasetOptions.model_validate({"kind": kind, "root": tmp_path / "absent"}))
