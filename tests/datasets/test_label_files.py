from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.datasets.classes import VOC12
from pipelines.datasets.label_files import label_names, read_label_file, select_labels, write_label_file
from pipelines.errors import UsageError

GOOD = {"a": (7, 11), "b.c": (), "d e": (14,)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "image,labels\na,dog;cat\nb.c,\nd e,person\n"),
        ("l.csv", "\ufefflabels,image\r\n dog ; cat;dog;,a.jpg\r\n\r\n,b.c.PNG\r\nperson,d e.webp"),
        ("l.CSV", 'image,labels\n"a","dog;cat"\n"b.c",""\n"d e",person\n'),
        ("l.json", '{"a": ["dog", "cat", "dog"], "b.c.jpeg": [], "d e": ["person"]}'),
        ("l.json", '\ufeff{\r\n"a.bmp": ["cat", "dog"],\r\n "b.c": [], "d e.tif": ["person"]}\r\n'),
        (
            "l.jsonl",
            '{"image": "a", "labels": ["dog", "cat"]}\n\n{"labels": [], "image": "b.c"}\n{"image":"d e","labels":["person"]}',
        ),
        (
            "l.jsonl",
            '\ufeff{"image": "a.jpg", "labels": ["dog", "cat"]}\r\n'
            '{"labels": [], "image": "b.c"}\r\n{"image": "d e", "labels": ["person"]}\r\n',
        ),
    ],
)
def test_formats_agree(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read_label_file(path, VOC12) == GOOD
    assert list(read_label_file(path, VOC12)) == list(GOOD)
    assert label_names(path) == ("cat", "dog", "person")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "", ":1: expected columns image,labels, found an empty file"),
        ("l.csv", "\n# none\nphoto of,x\na,cat\n", ":1: expected columns image,labels, found 'photo of,x'"),
        ("l.csv", "image,labels\na,background\n", ":2: unknown class 'background', .* has background\\)"),
        ("l.csv", "image,labels\na,None\n", ":2: unknown class 'None', .* a class empty\\)"),
        ("l.csv", "picture of,what\na,cat\n", ":1: expected columns image,labels, found 'picture of,what' .*first line names"),
        ("l.csv", "image,labels,more\n", ": expected at least one image"),
        ("l.csv", "image,cat,dog\na,1,0\nb,1,2\n", ":1: expected columns|:3: expected 0 or 1 in column 'dog', found '2'"),
        ("l.csv", "image,label\na,1\nb,0\n", ":1: expected a column of class names, found 'label' with 0 and 1"),
        ("l.csv", "image,labels,image\na,cat,b\n", ":1: expected each column once, found 'image' twice"),
        ("l.csv", "image,labels\n", ": expected at least one image"),
        ("l.csv", "image,labels\na,cat,dog\n", ":2: expected image,labels with class names separated by ';', found 3 columns"),
        ("l.csv", "image,labels\n\na,cat\nb,dgo\n", ":4: unknown class 'dgo', .*did you mean 'dog'"),
        ("l.csv", "image,labels\na,cat\na.jpg,dog\n", r":3: image 'a' occurs twice, first in .*l\.csv:2"),
        ("l.csv", "image,labels\n../a,cat\n", ":2: image id '../a' has path separators"),
        ("l.csv", 'image,labels\n"a,cat\n', ": broken CSV|:2: broken CSV|:3: broken CSV"),
        ("l.csv", "image,labels\n,cat\n", ":2: image id '' is empty"),
        ("l.json", '{"a": ["cat"],\n"b": [}', ":2: broken JSON"),
        ("l.json", "[" * 200_000, ":1: broken JSON"),
        ("l.json", '{"a": ' + "9" * 5000 + "}", ":1: broken JSON"),
        ("l.json", '[["a", ["cat"]]]', r": expected an object \{image: \[class names\]\}, found a list"),
        ("l.json", '{"a": "cat"}', ": entry 'a': expected a list of class names, found 'cat'.*numbers and boxes are not read"),
        ("l.json", '{"a": {"cat": 1}}', ": entry 'a': expected a list of class names"),
        ("l.json", '{"a": [1]}', r": entry 'a': expected a list of class names, found \[1\]"),
        ("l.json", '{"a": ["cat"], "a": ["dog"]}', ": entry 'a': image 'a' occurs twice"),
        ("l.json", '{"a": ["birdd"]}', ": entry 'a': unknown class 'birdd'.*did you mean 'bird'"),
        ("l.jsonl", '{"image": "a", "labels": []}\n{"image": "b"}', ':2: expected {"image": ..., "labels"'),
        ("l.jsonl", '{"image": "a", "labels": []}\n[]\n', ":2: expected"),
        ("l.jsonl", '{"image": "a", "labels": []}\n{"image": "b",\n', ":2: broken JSON"),
        ("l.jsonl", '{"image": 3, "labels": []}', ":1: expected an image name, found 3"),
        ("l.jsonl", '{"image": "a", "image": "b", "labels": []}', ":1: expected"),
        ("l.txt", "a", r": expected a label file \.csv, \.json or \.jsonl, found '\.txt'.*save the table as CSV"),
    ],
)
def test_bad_file_is_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    with pytest.raises(UsageError, match=message) as caught:
        read_label_file(path, VOC12)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read labels: No such file"):
        read_label_file(tmp_path / "l.csv", VOC12)
    (tmp_path / "l.csv").write_bytes(b"image,labels\n\xe9,cat\n")
    with pytest.raises(UsageError, match="expected UTF-8, found byte 0xe9 at 13"):
        read_label_file(tmp_path / "l.csv", VOC12)


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"l.{suffix}"
    labels = {**GOOD, 'quote " comma,': (0,), "été": (19,)}
    path.write_text("old")
    write_label_file(path, labels, VOC12)
    assert read_label_file(path, VOC12) == labels
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert b"\r" not in path.read_bytes()


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l.csv"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(UsageError, match=r"cannot write .*l\.csv: No space left"):
        write_label_file(path, GOOD, VOC12)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["l.csv"]


def test_write_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found '\.xlsx'"):
        write_label_file(tmp_path / "l.xlsx", GOOD, VOC12)


def test_select_keeps_the_wanted_order() -> None:
    assert list(select_labels(GOOD, ["d e", "a"], Path("l")).items()) == [("d e", (14,)), ("a", (7, 11))]
    with pytest.raises(UsageError, match="l: no entry for 2 of 3 images, first 'x'"):
        select_labels(GOOD, ["a", "x", "y"], Path("l"))


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_ids_that_look_like_file_names_come_back(tmp_path: Path, suffix: str) -> None:
    labels = {"photo": (7,), "photo.jpg": (11,), "scan1.tif": (14,)}
    write_label_file(tmp_path / f"l{suffix}", labels, VOC12)
    assert read_label_file(tmp_path / f"l{suffix}", VOC12) == labels
