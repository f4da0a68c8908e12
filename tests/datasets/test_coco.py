from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.datasets import load_dataset
from pipelines.datasets.classes import COCO14
from pipelines.datasets.coco_json import labels_from_coco, read_instances
from pipelines.errors import SsrError, UsageError
from pipelines.options.sources import DatasetOptions

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 5, "name": "airplane"}]


def instances(prefix: str = "") -> dict[str, list[dict[str, object]]]:
    return {
        "categories": [*CATEGORIES],
        "images": [{"id": 7, "file_name": f"{prefix}b.jpg"}, {"id": 8, "file_name": f"{prefix}a.jpg"}],
        "annotations": [
            {"image_id": 7, "category_id": 90, "iscrowd": 0, "segmentation": [[1, 2, 3]]},
            {"image_id": 7, "category_id": 1, "iscrowd": 1, "segmentation": {"counts": "x", "size": [1, 1]}},
            {"image_id": 7, "category_id": 90, "iscrowd": 0, "segmentation": []},
        ],
    }


@pytest.fixture
def root(tmp_path: Path, write: Callable[[Path, str], Path]) -> Path:
    for folder, prefix in (("train2014", "t"), ("val2014", "v")):
        write(tmp_path / folder / f"{prefix}b.jpg", "")
        write(tmp_path / f"annotations/instances_{folder}.json", json.dumps(instances(prefix)))
    return tmp_path


def options(root: Path, **rest: object) -> DatasetOptions:
    return DatasetOptions.model_validate({"kind": "coco", "root": root, **rest})


@pytest.mark.parametrize(("split", "folder"), [("train", "train2014"), ("train2014", "train2014"), ("val", "val2014")])
def test_labels_by_id_with_crowds_and_aliases(root: Path, split: str, folder: str) -> None:
    dataset = load_dataset(options(root, split=split))
    first = folder[0]
    assert [(one.image_id, one.labels) for one in dataset.samples] == [(f"{first}a", ()), (f"{first}b", (0, 79))]
    assert dataset.samples[1].image_path == root / folder / f"{first}b.jpg"
    assert (dataset.split, dataset.mask_folder, dataset.classes) == (folder, None, COCO14)


def test_2017_is_found_too(root: Path) -> None:
    (root / "train2014").rename(root / "train2017")
    (root / "annotations/instances_train2014.json").rename(root / "annotations/instances_train2017.json")
    assert load_dataset(options(root)).split == "train2017"
    with pytest.raises(UsageError, match="expected images of split 'train2014', found val2014, train2017"):
        load_dataset(options(root, split="train2014"))


def test_mask_folder(root: Path) -> None:
    (root / "SegmentationClass/train2014").mkdir(parents=True)
    assert load_dataset(options(root)).mask_path("tb") == root / "SegmentationClass/train2014/tb.png"
    assert load_dataset(options(root, split="val")).mask_path("vb") is None


def test_split_file_picks_over_both_folders(root: Path, write: Callable[[Path, str], Path]) -> None:
    split = str(write(root / "mine.txt", "vb\ntb\n"))
    dataset = load_dataset(options(root, split=split))
    assert [one.image_path for one in dataset.samples] == [root / "val2014/vb.jpg", root / "train2014/tb.jpg"]
    assert dataset.split == "mine"
    write(root / "mine.txt", "tb\nzz\n")
    with pytest.raises(UsageError, match=r"instances_\*\.json: no entry for 1 of 2 images, first 'zz'"):
        load_dataset(options(root, split=split))


def test_split_file_reads_no_more_json_than_needed(root: Path, write: Callable[[Path, str], Path]) -> None:
    write(root / "annotations/instances_val2014.json", "broken")
    assert len(load_dataset(options(root, split=str(write(root / "mine.txt", "tb\n")))).samples) == 1
    with pytest.raises(SsrError, match="broken JSON"):
        load_dataset(options(root, split=str(write(root / "mine.txt", "vb\n"))))


@pytest.mark.parametrize("with_json", [True, False])
def test_label_file_goes_before_the_json(root: Path, write: Callable[[Path, str], Path], with_json: bool) -> None:
    labels = write(root / "labels.csv", "image,labels\nta,couch;person\ntb,\n")
    if not with_json:
        (root / "annotations/instances_train2014.json").unlink()
    dataset = load_dataset(options(root, labels=labels))
    assert [(one.image_id, one.labels) for one in dataset.samples] == [("ta", (0, 57)), ("tb", ())]
    assert dataset.samples[0].image_path == root / "train2014/ta.jpg"


def test_label_file_and_split_file_need_no_json(root: Path, write: Callable[[Path, str], Path]) -> None:
    labels = write(root / "labels.csv", "image,labels\nvb,tv\nzz,\n")
    for path in (root / "annotations").iterdir():
        path.write_text("broken")
    dataset = load_dataset(options(root, labels=labels, split=str(write(root / "mine.txt", "vb\n"))))
    assert [(one.image_path, one.labels) for one in dataset.samples] == [(root / "val2014/vb.jpg", (62,))]


def broken(**changes: object) -> str:
    return json.dumps(instances() | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "broken JSON"),
        ("[" * 200_000, "broken JSON"),
        ("[]", "found a list"),
        ("{}", "categories: expected COCO instances, found KeyError 'categories'"),
        (
            broken(
                categories=[{"id": 1, "name": "persom"}],
                images=[{"id": 7, "file_name": "a.jpg"}],
                annotations=[{"image_id": 7, "category_id": 1}],
            ),
            "categories: unknown class 'persom'.*did you mean 'person'",
        ),
        (broken(categories=[{"id": i, "name": 3} for i in (1, 90)]), "categories: expected COCO instances"),
        (broken(images=[{"id": 1}]), "images: expected COCO instances, found KeyError 'file_name'"),
        (broken(images=[{"id": 7, "file_name": "a.jpg"}] * 2), "images: an id occurs twice"),
        (
            broken(images=[{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "a.png"}], annotations=[]),
            "'a.png' occurs twice",
        ),
        (broken(images=[{"id": 7, "file_name": "../../a.jpg"}], annotations=[]), "image 7: file_name .* leads out of the data"),
        (broken(images=[{"id": 7, "file_name": 5}], annotations=[]), "images: expected a file_name, found 5"),
        (broken(images=[], annotations=[]), "expected at least one image"),
        (
            broken(annotations=[{"image_id": 9, "category_id": 1}]),
            "annotations: expected COCO instances, found none of the images that are listed",
        ),
        (
            broken(annotations=[{"image_id": 7, "category_id": 2}]),
            r"annotations\[0\]: category_id 2 is not among the categories",
        ),
    ],
)
def test_bad_json_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(SsrError, match=message) as caught:
        read_instances(path, COCO14)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_parts_say_what_was_expected(root: Path) -> None:
    with pytest.raises(UsageError, match=r"expected split train, val, .*found 'test'"):
        load_dataset(options(root, split="test"))
    with pytest.raises(UsageError, match=r"one of train2014.*found none"):
        load_dataset(options(root / "annotations"))
    (root / "annotations/instances_train2014.json").unlink()
    with pytest.raises(SsrError, match=r"instances_train2014\.json: cannot read the annotations: No such file.*--labels"):
        load_dataset(options(root))


def test_real_photos(shared_data: Path) -> None:
    root = shared_data / "data/coco14-mini"
    dataset = load_dataset(options(root))
    assert len(dataset.samples) == 100
    assert len(load_dataset(options(root, split="val")).samples) == 42
    assert all(sample.image_path.is_file() for sample in dataset.samples)
    masks = [dataset.mask_path(sample.image_id) for sample in dataset.samples]
    assert all(path is not None and path.is_file() for path in masks)

    source = root / "annotations/instances_train2014.json"
    content = json.loads(source.read_text())
    contiguous = sorted(category["id"] for category in content["categories"])  # the field's rule, without any names
    twin = {}
    for image in content["images"]:
        ids = {one["category_id"] for one in content["annotations"] if one["image_id"] == image["id"]}
        twin[image["file_name"].removesuffix(".jpg")] = tuple(sorted(contiguous.index(one) for one in ids))
    assert labels_from_coco(source, COCO14) == twin
