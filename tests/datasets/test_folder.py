from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.datasets import load_dataset
from pipelines.datasets.classes import VOC12
from pipelines.datasets.folder import load_photos
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions

Photo = Callable[..., Path]
Write = Callable[[Path, str], Path]


@pytest.fixture
def root(tmp_path: Path, photo: Photo, write: Write) -> Path:
    photo(tmp_path / "b.JPG")
    photo(tmp_path / "a.png")
    write(tmp_path / "labels.csv", "image,labels\nb.JPG,zebra;ant\nc,ant\na,\n")
    return tmp_path


def options(root: Path, **rest: object) -> DatasetOptions:
    return DatasetOptions.model_validate({"kind": "folder", "root": root, **rest})


def test_train_is_every_labelled_image(root: Path) -> None:
    dataset = load_dataset(options(root))
    found = [(one.image_id, one.image_path, one.labels) for one in dataset.samples]
    assert found == [("b", root / "b.JPG", (0, 1)), ("c", root / "c.png", (0,)), ("a", root / "a.png", ())]
    assert (dataset.classes.names, dataset.classes.prompts) == (("ant", "zebra"), ("ant", "zebra"))
    assert (dataset.classes.background, dataset.classes.template) == (VOC12.background, VOC12.template)
    assert dataset.mask_folder is None


def test_images_folder_and_masks(root: Path) -> None:
    (root / "images").mkdir()
    (root / "masks").mkdir()
    (root / "a.png").rename(root / "images/a.webp")
    dataset = load_dataset(options(root))
    assert [one.image_path for one in dataset.samples][2] == root / "images/a.webp"
    assert dataset.mask_path("a") == root / "masks/a.png"


def test_splits(root: Path, write: Write) -> None:
    write(root / "val.txt", "a\n")
    assert [one.image_id for one in load_dataset(options(root, split="val")).samples] == ["a"]
    assert [one.image_id for one in load_dataset(options(root, split=str(root / "val.txt"))).samples] == ["a"]
    write(root / "train.txt", "c\nb\n")
    assert [one.image_id for one in load_dataset(options(root)).samples] == ["c", "b"]
    with pytest.raises(UsageError, match=r"test\.txt: cannot read the split"):
        load_dataset(options(root, split="test"))
    write(root / "val.txt", "a\nnobody\n")
    with pytest.raises(UsageError, match=r"labels\.csv: no entry for 1 of 2 images, first 'nobody'"):
        load_dataset(options(root, split="val"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.json", '{"a.png": ["dog", "cat"]}'),
        ("l.jsonl", '{"image": "a", "labels": ["cat", "dog"]}'),
        ("l.csv", "image,labels\na,dog;cat"),
    ],
)
def test_other_label_files_and_own_classes(root: Path, write: Write, name: str, text: str) -> None:
    labels = write(root / name, text)
    classes = write(root / "c.yaml", "classes: [{name: dog}, {name: cow}, {name: cat}]")
    assert load_dataset(options(root, labels=labels)).samples[0].labels == (0, 1)
    assert load_dataset(options(root, labels=labels, classes=classes)).samples[0].labels == (0, 2)


def test_two_images_of_one_name(root: Path, photo: Photo) -> None:
    photo(root / "a.jpg")
    with pytest.raises(UsageError, match=r"expected one image of each name, found a\.jpg and a\.png"):
        load_dataset(options(root))


def test_label_file_must_be_one(root: Path, write: Write) -> None:
    write(root / "labels.json", "{}")
    with pytest.raises(UsageError, match=r"found labels\.csv, labels\.json \(--labels FILE"):
        load_dataset(options(root))
    (root / "labels.csv").unlink()
    (root / "labels.json").unlink()
    with pytest.raises(UsageError, match=r"found none \(--labels FILE"):
        load_dataset(options(root))
    write(root / "my set/labels.csv", "image,labels\na,\n")
    with pytest.raises(UsageError, match=r"found none \(--root '.*/my set', or --labels FILE"):
        load_dataset(options(root))


def test_label_file_without_any_class(root: Path, write: Write) -> None:
    write(root / "labels.csv", "image,labels\na,\n")
    with pytest.raises(UsageError, match=r"labels\.csv: expected 1 to 254 classes, found 0 \(--classes"):
        load_dataset(options(root))


def test_photos_alone(tmp_path: Path, photo: Photo, write: Write) -> None:
    """No labels, no classes of their own, nothing but photos."""
    root = tmp_path / "my.photos"
    (root / "deeper").mkdir(parents=True)
    photo(root / "b.one.JPG")
    photo(root / "a.png")
    photo(root / "._a.png")
    photo(root / "deeper/c.png")
    write(root / "labels.csv", "not,looked,at")
    dataset = load_photos(root, ("ant", "zebra"))
    found = [(one.image_id, one.image_path, one.labels) for one in dataset.samples]
    assert found == [("a", root / "a.png", ()), ("b.one", root / "b.one.JPG", ())]
    assert (dataset.kind, dataset.split, dataset.classes.names) == ("folder", "my.photos", ("ant", "zebra"))
    assert dataset.mask_folder is None


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "found none; subfolders are not searched"),
        (("a.jpg", "a.png"), "one image of each name, found a.jpg and a.png"),
        (("a\u200b.jpg",), "control characters"),
        (("a .jpg",), "space around it"),
    ],
)
def test_photos_that_cannot_be_listed(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    (tmp_path / "photos").mkdir()
    for name in names:
        (tmp_path / "photos" / name).write_bytes(b"")
    with pytest.raises(UsageError, match=said):
        load_photos(tmp_path / "photos", ("ant",))
    with pytest.raises(UsageError, match="--images"):
        load_photos(tmp_path / "none", ("ant",))
