"""Lists, tables and exports as people have them: each form, and what is read from it or said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets import load_dataset
from pipelines.datasets.classes import VOC12, ClassList, load_class_list, write_class_list
from pipelines.datasets.label_files import label_names, read_label_file, understood
from pipelines.datasets.labels import convert_labels
from pipelines.datasets.onehot import read_onehot_npy
from pipelines.datasets.splits import parse_split
from pipelines.errors import SsrError, UsageError
from pipelines.options.sources import DatasetOptions

CLASSES = ClassList(("apple", "cup", "traffic light"), ("apple", "cup", "traffic light"), (), aliases=(("mug", "cup"),))
TWO = {"a": (0, 1), "b": ()}

TABLES: dict[str, tuple[str, bytes, str]] = {
    # form: suffix, content, what is said of it
    "semicolons": (".csv", b'image;labels\na.jpg;"apple;cup"\nb.jpg;\n', "columns are separated by semicolons"),
    "tabs": (".tsv", b"image\tlabels\na\tapple;cup\nb\t\n", "columns are separated by tabs"),
    "utf-16 of Excel": (".csv", "image\tlabels\r\na\tapple;cup\r\nb\t\r\n".encode("utf-16"), "UTF-16; columns are"),
    "other names": (".csv", b"file_name,tags\n./photos/a.jpg,apple;cup\nphotos/b.jpg,\n", "column 'file_name' is the image"),
    "more columns": (".csv", b"id,path,split,Label\n1,/d/a.png,x,apple;cup\n2,/d/b.png,,\n", "passed over: id, split"),
    "one column a class": (".csv", b"filename, apple, cup, Unlabeled\na.jpg,1,1,0\nb.jpg,0,0,1\n", "one column a class: apple"),
    "Excel's own first line": (".csv", b"sep=;\r\nimage;labels\r\na.jpg;apple, cup\r\nb.jpg;\r\n", "separated by semicolons"),
    "comments first": (".csv", b"# made by hand\n\nimage,labels\na,apple;cup\nb,\n", ""),
    "rows that deny a class": (
        ".csv", b"ImageID,LabelName,Confidence\na,apple,1\na,cup,1\nb,cup,0\n", "rows of Confidence 0 say that a class is not"
    ),
    "an index of pandas": (".csv", b",filename,apple,cup\n0,a.jpg,1,1\n1,b.jpg,0,0\n", "one column a class: apple, cup"),
    "Label Studio's short form": (
        ".json", b'[{"image": "/d/1/a.jpg", "choice": {"choices": ["apple", "cup"]}}, {"image": "b.jpg", "choice": ""}]', ""
    ),
    "one row an object": (".csv", b"filename,class,xmin\na.jpg,apple,1\nb.jpg,,\na.jpg,cup,9\n", "several rows"),
    "commas in a cell": (".csv", b'image,labels\na,"apple, cup"\nb,\n', ""),
    "bars in a cell": (".csv", b"image,labels\na,apple|mug\nb,\n", ""),
    "spaces in a cell": (".csv", b"image,labels\na,apple cup\nb,\n", ""),
    "a list as text": (".csv", b"image,labels\na,\"['apple', 'cup']\"\nb,[]\n", ""),
    "a path of Windows": (".csv", b"image,labels\nC:\\photos\\a.jpg,apple;cup\nC:\\photos\\b.jpg,\n", ""),
    "records": (".json", b'[{"file_name": "a.jpg", "label": ["apple", "cup"]}, {"file_name": "b.jpg", "label": []}]', ""),
    "lines of keys": (".jsonl", b'{"file_name": "a.jpg", "tags": ["apple", "cup"], "w": 3}\n{"path": "b", "tags": []}', ""),
    "Label Studio": (
        ".json",
        json.dumps([
            {"data": {"image": "/data/local-files/?d=photos/a.jpg"}, "annotations": [{"result": [
                {"value": {"x": 1, "rectanglelabels": ["apple"]}}, {"value": {"choices": ["cup"]}}]}]},
            {"data": {"image": "/data/upload/1/b.jpg"}, "annotations": []},
        ]).encode(),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", TABLES)
def test_a_table_says_the_same_in_every_form(tmp_path: Path, form: str) -> None:
    suffix, content, said = TABLES[form]
    path = tmp_path / f"l{suffix}"
    path.write_bytes(content)
    assert read_label_file(path, CLASSES) == TWO
    words = understood(path)
    assert said in " ".join(words)
    assert bool(words) == bool(said)


NO_NAMES = {
    # cell that a class would be made of: what is said
    "apple,cup": "class name 'apple,cup' holds several class names in one: 'apple', 'cup'",
    "pear|fig": "class name 'pear|fig' holds separators or brackets",
    "['apple', 'cup']": "holds separators or brackets",
    "apple cup": "class name 'apple cup' holds several class names in one",
    "a.jpg": "'a.jpg' is the name of an image",
    "background": "'background' is what no class covers",
    "nan": "'nan' stands for no class",
    "N/A": "'N/A' stands for no class",
    "Apple": "class names 'Apple' and 'apple' can be taken for one",
    "ap-ple": "class names 'ap-ple' and 'apple' can be taken for one",
    "\u0430pple": "can be taken for one",  # a Cyrillic letter
}


@pytest.mark.parametrize("cell", NO_NAMES)
def test_class_names_from_data_are_not_believed(tmp_path: Path, write: Callable[[Path, str], Path], cell: str) -> None:
    table = {"a": ["apple"], "b": ["cup"], "c": [cell]}
    write(tmp_path / "labels.json", json.dumps(table))
    with pytest.raises(UsageError, match=r"labels\.json: .*") as caught:
        load_dataset(DatasetOptions(kind="folder", root=tmp_path))
    assert NO_NAMES[cell] in str(caught.value)
    assert ("leave it out" if cell == "background" else "--classes FILE") in str(caught.value)


def test_names_that_differ_in_what_no_one_sees_are_one(tmp_path: Path, write: Callable[[Path, str], Path]) -> None:
    path = write(tmp_path / "l.json", '{"a": ["caf\u00e9 cup"], "b": ["cafe\u0301\u00a0cup "], "c": ["\ufeffcaf\u00e9  cup"]}')
    assert label_names(path) == ("caf\u00e9 cup",)


SPLITS = {
    # lines: ids, what is said
    "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n/JPEGImages/b.jpg /SegmentationClassAug/b.png": "paths of masks",
    "a 0 5\nb\n": "the numbers behind each image",
    "a  1\nb -1\n": "flags of one class",
    "images/train/a.jpg\nimages/train/b.jpg\n": "folders and suffixes",
    "JPEGImages/a\nJPEGImages/b\n": "folders and suffixes",
    "JPEGImages/a.jpg,SegmentationClass/a.png,0,5\nJPEGImages/b.jpg,SegmentationClass/b.png\n": "paths of masks",
    "JPEGImages/a SegmentationClass/a\nJPEGImages/b SegmentationClass/b\n": "paths of masks",
    '"a"\n"b"\n': "",
    "a,\nb,\n": "",
    "image_id\na\nb\n": "",
    "a.jpg,0\nb.jpg,1\n": "flags of one class",
    "a\r\nb\r\n": "",
}


@pytest.mark.parametrize("text", SPLITS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_split_in_every_form(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "s.txt").write_bytes(text.encode(encoding))
    split = parse_split(tmp_path / "s.txt", {"a", "b"})
    assert split.ids == ("a", "b")
    assert SPLITS[text] in " ".join(split.understood)
    assert bool(split.understood) == bool(SPLITS[text])


@pytest.mark.parametrize("text", ["kitchen 1\nkitchen 2\n", "my photo\nb c\n"])
def test_an_id_with_a_space_stays_one(tmp_path: Path, write: Callable[[Path, str], Path], text: str) -> None:
    assert parse_split(write(tmp_path / "s.txt", text)).ids == tuple(text.splitlines())
    assert parse_split(write(tmp_path / "t.txt", "hall 1\nyard 2\n"), {"hall 1"}).ids == ("hall 1", "yard 2")


FILES = {
    # file on disk: id in the list
    "a.JPG": "a", "a.jfif": "a", "a.jpe": "a", "a.png": "a", "a.tiff": "a", "cafe\u0301.jpg": "caf\u00e9",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "voc", "coco"])
@pytest.mark.parametrize("name", FILES)
def test_a_photo_is_found_by_every_layout(tmp_path: Path, write: Callable[[Path, str], Path], kind: str, name: str) -> None:
    folder = {"folder": "images", "voc": "JPEGImages", "coco": "train2014"}[kind]
    path = write(tmp_path / folder / name, "")
    write(tmp_path / folder / "other.jpg", "")
    write(tmp_path / "ImageSets/Segmentation/train.txt", f"{FILES[name]}\nother\n")
    labels = write(tmp_path / "labels.csv", f"image,labels\n{FILES[name]},cat\nother,\n")
    options = DatasetOptions(kind=kind, root=tmp_path, labels=labels)
    if kind == "coco":
        options = options.model_copy(update={"split": str(tmp_path / "ImageSets/Segmentation/train.txt")})
    assert next(iter(load_dataset(options).samples)).image_path == path


def coco(names: tuple[str, ...], prefix: str = "", **changes: object) -> str:
    content: dict[str, object] = {
        "categories": [{"id": 0, "name": "fruits", "supercategory": "none"},
                       *({"id": number, "name": name, "supercategory": "fruits"} for number, name in enumerate(names, 1))],
        "images": [{"id": 1, "file_name": f"{prefix}a.jpg"}, {"id": 2, "file_name": f"{prefix}b.jpg"}],
        "annotations": [{"image_id": image, "category_id": category} for image, category in ((1, 2), (1, 1), (9, 1))],
    }  # fmt: skip
    return json.dumps(content | changes)


EXPORTS = {
    # tool: annotations, photos, file names begin with
    "Roboflow": ("train/_annotations.coco.json", "train", ""),
    "CVAT": ("annotations/instances_default.json", "images/default", ""),
    "CVAT, subfolders": ("annotations/instances_default.json", "images/sub", "sub/"),
    "FiftyOne": ("labels.json", "data", ""),
    "Label Studio": ("result.json", "images", "images/"),
    "own classes as train2017": ("annotations/instances_train2017.json", "train2017", "https://host/"),
    "yolo's images": ("annotations/instances_train2017.json", "images/train2017", ""),
    "lists beside the photos": ("train.json", "images", ""),
    "from the folder of annotations": ("annotations/instances_train.json", "images/train", "../images/train/"),
    "with a detour": ("annotations/instances_train.json", "images/train", "x\\..\\"),
}


@pytest.mark.parametrize("tool", EXPORTS)
def test_an_export_in_cocos_form(tmp_path: Path, write: Callable[[Path, str], Path], tool: str) -> None:
    annotations, photos, prefix = EXPORTS[tool]
    for name in ("a", "b"):
        write(tmp_path / photos / f"{name}.jpg", "")
    names = ("pear", "quince") if tool != "yolo's images" else ("apple", "cake")
    source = write(tmp_path / annotations, coco(names, prefix))
    dataset = load_dataset(DatasetOptions(kind="coco", root=tmp_path))
    found = [(one.image_id, one.image_path, [dataset.classes.names[index] for index in one.labels]) for one in dataset.samples]
    assert found == [("a", tmp_path / photos / "a.jpg", list(names)), ("b", tmp_path / photos / "b.jpg", [])]
    assert f"{source.name}: passed over 1 annotations of images that are not listed" in dataset.passed_over
    assert any("categories without an annotation: fruits" in words for words in dataset.passed_over)


def test_annotations_without_photos_or_split_are_named(tmp_path: Path, write: Callable[[Path, str], Path]) -> None:
    write(tmp_path / "train/_annotations.coco.json", coco(("apple", "helmet")))
    options = DatasetOptions(kind="coco", root=tmp_path)
    write(tmp_path / "outer/set/train/_annotations.coco.json", coco(("apple", "helmet")))
    with pytest.raises(UsageError, match=rf"found none in .*: it holds set \(--root {tmp_path}/outer/set\)"):
        load_dataset(options.model_copy(update={"root": tmp_path / "outer"}))
    with pytest.raises(UsageError, match=r"found none in .*: it holds outer, train"):
        load_dataset(options)
    write(tmp_path / "train/a.jpg", "")
    assert load_dataset(options).classes.names == ("apple", "helmet")
    with pytest.raises(UsageError, match=r"expected annotations of split 'val', found train \(train/_annotations"):
        load_dataset(options.model_copy(update={"split": "val"}))


TWICE = {
    # images in the label file: what is said where no folder tells them apart
    "x/a.jpg y/a.jpg": "'x/a.jpg' in .*:2 and 'y/a.jpg' have one name (rename one image",
    "/data/x/a.jpg /data/y/a.jpg": "have one name",
    "C:\\p\\x\\a.jpg C:\\p\\y\\a.jpg": "have one name",
    "x/a.jpg x/a.jpg": "image .* occurs twice, first in .*:2",
}


@pytest.mark.parametrize("names", TWICE)
@pytest.mark.parametrize("split", ["", "x/a.jpg\n./y/a.jpg\n"])
def test_two_photos_of_one_name(tmp_path: Path, write: Callable[[Path, str], Path], names: str, split: str) -> None:
    """In sub-folders both are read; where the folder of photos has none, the table cannot be meant."""
    first, second = names.split(" ")
    labels = write(tmp_path / "labels.csv", f"image,labels\n{first},apple\n{second},cup\nb.jpg,\n")
    for name in ("x/a.jpg", "y/a.jpg", "z/b.jpg"):
        write(tmp_path / "images" / name, "")
    if split:
        write(tmp_path / "train.txt", split)
    options = DatasetOptions(kind="folder", root=tmp_path)
    if first != second:
        found = {one.image_id: (one.image_path.parent.name, one.labels) for one in load_dataset(options).samples}
        assert found == {"x__a": ("x", (0,)), "y__a": ("y", (1,))} | ({} if split else {"b": ("z", ())})
        (tmp_path / "images/x/a.jpg").rename(tmp_path / "images/a.jpg")
    with pytest.raises(UsageError) as caught:
        load_dataset(options)
    for words in TWICE[names].split(" .* "):
        assert words.replace(".*:2", f"{labels}:2") in str(caught.value)


@pytest.mark.parametrize("line", ["a apple", "a.jpg apple", "a.jpg,apple;cup", "a,cup", "a.jpg\tapple cup"])
def test_class_names_in_a_split_are_named(tmp_path: Path, write: Callable[[Path, str], Path], line: str) -> None:
    path = write(tmp_path / "s.txt", f"# ids\n{line}\nb cup\n")
    with pytest.raises(
        UsageError, match=r"s\.txt:2: expected one image a line, found '.*' behind 'a.*'.*--labels FILE"
    ) as caught:
        parse_split(path, {"a": (), "b": ()})
    assert "apple" in str(caught.value) or "cup" in str(caught.value)


ODD_COCO: dict[str, object] = {
    "ids as text": {"images": [{"id": "1", "file_name": "a.jpg"}, {"id": "2", "file_name": "b.jpg"}]},
    "classes as text": {"annotations": [{"image_id": 1, "category_id": "1"}, {"image_id": 1, "category_id": "2"}]},
    "one name twice": {"categories": [{"id": 0, "name": "pear", "supercategory": "none"}, {"id": 1, "name": "pear"},
                                      {"id": 2, "name": "quince"}]},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_COCO)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_annotations_of_other_hands(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / "i.json"
    path.write_bytes(coco(("pear", "quince"), **ODD_COCO[name]).encode(encoding))  # type: ignore[arg-type]
    found = convert_labels("coco", path, None)
    assert (found.classes.names, found.labels) == (("pear", "quince"), {"a": (0, 1), "b": ()})


def test_a_folder_a_class(tmp_path: Path, write: Callable[[Path, str], Path]) -> None:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "x.txt"):
        write(tmp_path / name, "")
    found = convert_labels("folders", tmp_path, None)
    assert (found.labels, found.classes.names) == ({"cat__1": (0,), "2": (0,), "dog__1": (1,)}, ("cat", "dog"))
    write(tmp_path / "labels.json", '{"cat__1": ["cat"], "2": ["cat"], "dog__1": ["dog"]}')
    dataset = load_dataset(DatasetOptions(kind="folder", root=tmp_path))
    assert [one.image_path.relative_to(tmp_path).as_posix() for one in dataset.samples] == [
        "cat/1.jpg",
        "cat/2.jpg",
        "dog/1.jpg",
    ]


def test_folders_around_those_of_classes_are_no_classes(tmp_path: Path, write: Callable[[Path, str], Path]) -> None:
    for name in ("data/images/train/cat/1.jpg", "data/images/val/dog/2.jpg", "data/images/val/dog/3.gif"):
        write(tmp_path / name, "")
    found = convert_labels("folders", tmp_path / "data", None)
    assert (found.labels, found.classes.names) == ({"1": (0,), "2": (1,)}, ("cat", "dog"))
    assert "files of formats that are not read: 1 .gif" in found.understood[0]


def test_yolo(tmp_path: Path, write: Callable[[Path, str], Path]) -> None:
    for name in ("images/train/a.jpg", "images/train/b.jpg"):
        write(tmp_path / name, "")
    write(tmp_path / "data.yaml", "names: [apple, cup]\n")
    path = write(tmp_path / "labels/train/a.txt", "1 .5 .5 1 1\n0 .1 .1 .1 .1 .2 .2\n")
    found = convert_labels("yolo", tmp_path, None)
    assert (found.labels, found.classes.names) == (TWO, ("apple", "cup"))
    assert found.understood == ("class names are those of data.yaml", "1 images without a label file have no class")
    write(path, "2 .5 .5 1 1\n")
    with pytest.raises(UsageError, match=r"a\.txt:1: expected a class number from 0 to 1, found '2'"):
        convert_labels("yolo", tmp_path, None)
    write(path, "1 .5 .5 1 1\n0 .1 .1 .1 .1 .2 .2\n")
    write(tmp_path / "data.yaml", "names: [no, yes]\n")
    with pytest.raises(UsageError, match=r"data\.yaml: expected class names, found False \(YAML needs quotes"):
        convert_labels("yolo", tmp_path, None)
    (tmp_path / "data.yaml").unlink()
    write(tmp_path / "labels/classes.txt", "apple\r\ncup\r\n")  # as labelImg leaves it
    assert convert_labels("yolo", tmp_path, None).labels == TWO


def test_written_classes_are_read_back(tmp_path: Path) -> None:
    write_class_list(tmp_path / "c.toml", ClassList(('a "b"', "\u00e9"), ('a "b"', "x"), ("sky",), "a {}."))
    assert load_class_list(tmp_path / "c.toml") == ClassList(('a "b"', "\u00e9"), ('a "b"', "x"), ("sky",), "a {}.")
    with pytest.raises(UsageError, match="there is a class list already"):
        write_class_list(tmp_path / "c.toml", VOC12)


def test_numbers_as_keys_of_irn(tmp_path: Path) -> None:
    row = np.eye(20, dtype=np.float32)[7]
    np.save(
        tmp_path / "l.npy", np.array({2007000032: row, np.int32(9): row, np.int64(25): row}, dtype=object), allow_pickle=True
    )
    assert list(read_onehot_npy(tmp_path / "l.npy", VOC12)) == ["2007_000032", "000000000009", "000000000025"]
    wanted = ["COCO_train2014_000000000009", "2007_000032"]
    assert list(read_onehot_npy(tmp_path / "l.npy", VOC12, wanted))[:2] == wanted[::-1]


def test_what_lies_in_place_of_a_photo_is_named(tmp_path: Path, write: Callable[[Path, str], Path]) -> None:
    from pipelines.datasets.image import load_image

    for name in ("a.heic", "IMG_1.jpg", "b.gif", "c.JPG.jpg"):
        write(tmp_path / name, "GIF89a" if name == "b.gif" else "x")
    for name, said in {
        "a.jpg": "'a.heic' lies there, a format that is not read: convert it, e.g. `mogrify -format jpg *.heic`",
        "img_1.jpg": "did you mean 'IMG_1.jpg'?",
        "c.jpg": "did you mean 'c.JPG.jpg'?",
        "d.jpg": "No such file or directory",
        "IMG_2.jpg": "did you mean 'IMG_1.jpg'?",
        "b.gif": "b'GIF89a', a GIF (convert it",
        "none/a.jpg": "there is no folder",
    }.items():
        with pytest.raises(SsrError) as caught:
            load_image(tmp_path / name)
        assert said in str(caught.value)
        assert name != "d.jpg" or "did you mean" not in str(caught.value)
