from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.datasets import load_dataset
from pipelines.datasets.classes import VOC12
from pipelines.datasets.voc import labels_from_xml
from pipelines.errors import SsrError, UsageError
from pipelines.options.sources import DatasetOptions


def annotation(*names: str) -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><part><name>head</name></part></object>" for name in names
    )
    return f"<annotation><filename>x.jpg</filename>{objects}</annotation>"


@pytest.fixture
def root(tmp_path: Path, write: Callable[[Path, str], Path]) -> Path:
    (tmp_path / "JPEGImages").mkdir()
    write(tmp_path / "ImageSets/Segmentation/train.txt", "b\na\n")
    write(tmp_path / "ImageSets/Main/val.txt", "a\n")
    write(tmp_path / "Annotations/a.xml", annotation("person", "cat", "person"))
    write(tmp_path / "Annotations/b.xml", annotation())
    return tmp_path


def options(root: Path, **rest: object) -> DatasetOptions:
    return DatasetOptions.model_validate({"kind": "voc", "root": root, **rest})


def test_xml_labels_in_split_order(root: Path) -> None:
    dataset = load_dataset(options(root))
    assert [(sample.image_id, sample.labels) for sample in dataset.samples] == [("b", ()), ("a", (7, 14))]
    assert dataset.samples[0].image_path == root / "JPEGImages/b.jpg"  # absent, which is no error here
    assert (dataset.kind, dataset.split, dataset.classes, dataset.mask_folder) == ("voc", "train", VOC12, None)


def test_split_falls_back_to_main(root: Path) -> None:
    assert [sample.image_id for sample in load_dataset(options(root, split="val")).samples] == ["a"]


def test_label_file_goes_before_xml(root: Path, write: Callable[[Path, str], Path]) -> None:
    write(root / "labels.csv", "image,labels\na,cow\nb,\n")
    assert load_dataset(options(root)).samples[1].labels == (7, 14)
    assert load_dataset(options(root, labels=root / "labels.csv")).samples[1].labels == (9,)


def test_labels_csv_stands_in_for_annotations(root: Path, write: Callable[[Path, str], Path]) -> None:
    (root / "Annotations").rename(root / "Elsewhere")
    with pytest.raises(UsageError, match=r"Annotations/\*\.xml or labels\.csv, found neither \(--labels"):
        load_dataset(options(root))
    write(root / "labels.csv", "image,labels\na.jpg,cow;cat\nb.jpg,\n")
    assert load_dataset(options(root)).samples[1].labels == (7, 9)
    write(root / "labels.csv", "image,labels\na.jpg,cow\n")
    with pytest.raises(UsageError, match="no entry for 1 of 2 images, first 'b'"):
        load_dataset(options(root))


def test_own_classes(root: Path, write: Callable[[Path, str], Path]) -> None:
    classes = write(root / "c.toml", "[[classes]]\nname = 'person'\n[[classes]]\nname = 'cat'\n")
    assert load_dataset(options(root, classes=classes)).samples[1].labels == (0, 1)


@pytest.mark.parametrize(
    ("split", "folder", "absent", "found"),
    [
        ("train", "SegmentationClass", "SegmentationClass/b.png", "SegmentationClass/b.png"),
        ("train_aug", "SegmentationClassAug", "SegmentationClassAug/b.png", "SegmentationClass/b.png"),
        ("train_aug", "SegmentationClassAug", "", "SegmentationClassAug/b.png"),
        ("own.txt", "SegmentationClass", "SegmentationClass/b.png", "SegmentationClassAug/b.png"),
    ],
)
def test_mask_folders(root: Path, write: Callable[[Path, str], Path], split: str, folder: str, absent: str, found: str) -> None:
    write(root / "ImageSets/Segmentation/train_aug.txt", "b\n")
    for name in ("SegmentationClass/b.png", "SegmentationClassAug/b.png"):
        write(root / name, "")
    (root / absent).unlink() if absent else None
    chosen = str(write(root / split, "b\n")) if split.endswith(".txt") else split
    dataset = load_dataset(options(root, split=chosen))
    assert (dataset.mask_folder, dataset.mask_path("b")) == (root / folder, root / found)
    assert dataset.split == split.removesuffix(".txt")


def test_train_aug_without_its_folder(root: Path, write: Callable[[Path, str], Path]) -> None:
    write(root / "ImageSets/Segmentation/train_aug.txt", "b\n")
    (root / "SegmentationClass").mkdir()
    assert load_dataset(options(root, split="train_aug")).mask_folder == root / "SegmentationClass"


def test_missing_annotation(root: Path) -> None:
    (root / "Annotations/a.xml").unlink()
    with pytest.raises(
        SsrError, match=r"annotation of 1 of 2 images, first .*a\.xml: No such file.*--absent-is-empty.*--labels"
    ):
        load_dataset(options(root))
    assert load_dataset(options(root, absent_is_empty=True)).samples[1].labels == ()


def test_every_xml_without_ids(root: Path) -> None:
    assert labels_from_xml(root / "Annotations", VOC12) == {"a": (7, 14), "b": ()}


@pytest.mark.parametrize("image_id", ["../../etc/passwd", "/etc/passwd", "a/../b"])
def test_traversal_in_a_split_is_refused(root: Path, image_id: str) -> None:
    (root / "ImageSets/Segmentation/train.txt").write_text(f"a\n{image_id}\n")
    with pytest.raises(UsageError, match=r"train\.txt:2: image id .* has path separators"):
        load_dataset(options(root))


def test_wrong_root_and_split_say_what_there_is(root: Path) -> None:
    with pytest.raises(UsageError, match=r"expected ImageSets/Segmentation/test\.txt, found train, val"):
        load_dataset(options(root, split="test"))
    (root / "outer/VOCdevkit").mkdir(parents=True)
    (root / "JPEGImages").rename(root / "outer/VOCdevkit/JPEGImages")
    (root / "outer/VOCdevkit").rename(root / "outer/VOC2012")
    with pytest.raises(UsageError, match=r"JPEGImages.*--root .*outer/VOC2012"):
        load_dataset(options(root / "outer"))
    (root / "outer/VOC2012").rename(root / "outer/my set")
    with pytest.raises(UsageError, match=r"--root '.*outer/my set'"):
        load_dataset(options(root / "outer"))


@pytest.mark.parametrize(("split", "count"), [("train", 226), ("val", 80), ("train_aug", 456)])
def test_real_photos(shared_data: Path, split: str, count: int) -> None:
    dataset = load_dataset(options(shared_data / "data/voc12-mini/VOCdevkit/VOC2012", split=split))
    assert len(dataset.samples) == count
    assert all(sample.image_path.is_file() and sample.labels for sample in dataset.samples)
    assert dataset.samples[0].labels == {"train": (0, 14), "train_aug": (0, 14), "val": (0,)}[split]
    masks = [dataset.mask_path(sample.image_id) for sample in dataset.samples]
    assert all(path is not None and path.is_file() for path in masks)
