"""Label files, splits, class lists and COCO's JSON that are not what they should be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.datasets.classes import COCO14, VOC12, load_class_list
from pipelines.datasets.coco_json import read_instances
from pipelines.datasets.label_files import label_names, read_label_file
from pipelines.datasets.onehot import read_onehot_npy
from pipelines.datasets.splits import read_split

MEGABYTES = 10_000_000
LINES = {".csv": "image,labels\n{}\n", ".json": "{{{}}}", ".jsonl": "{}\n"}
ROWS = {".csv": "a,cat", ".json": '"a": ["cat"]', ".jsonl": '{"image": "a", "labels": ["cat"]}'}
DEEP = "[" * 100_000

BAD_LABELS = {
    # name: (suffix, bytes)
    "half a utf-16": (".csv", "image,labels\na,cat\n".encode("utf-16")[:-1]),
    "utf-16 without a mark": (".csv", "image,labels\na,cat\n".encode("utf-16-le")),
    "null bytes": (".csv", b"image,labels\na\0,cat\n"),
    "only null bytes": (".csv", bytes(50)),
    "one header of 10 MB": (".csv", b"image" * (MEGABYTES // 5)),
    "a zip": (".csv", b"PK\x03\x04" + bytes(range(256))),
    "headless": (".csv", b"a,cat\nb,dog\n"),
    "doubled column": (".csv", b"image,image,labels\na,b,cat\n"),
    "background as class": (".csv", b"image,labels\na,background\n"),
    "class of another case": (".csv", b"image,labels\na,Cat\n"),
    "quote without end": (".csv", b'image,labels\n"a,cat\n' + b"b,dog\n" * 50_000),
    "one field of 10 MB": (".csv", b"image,labels\n" + b"a" * MEGABYTES + b",cat\n"),
    "one class of 10 MB": (".csv", b'image,labels\na,"' + b"cat;" * 30_000 + b'dgo"\n'),
    "deep value": (".json", b'{"a": ' + DEEP.encode()),
    "deep objects": (".json", b'{"a":' * 100_000),
    "doubled key with suffix": (".json", b'{"a": ["cat"], "a.jpg": []}'),
    "lone surrogate": (".json", rb'{"\ud800": ["cat"]}'),
    "NaN": (".json", b'{"a": NaN}'),
    "a number of 5,000 digits": (".json", b'{"a": [' + b"9" * 5000 + b"]}"),
    "null": (".json", b"null"),
    "two objects": (".json", b'{"a": ["cat"]}{"b": []}'),
    "deep line": (".jsonl", DEEP.encode() + b"\n"),
    "doubled key in a line": (".jsonl", b'{"image": "a", "labels": ["cat"], "labels": []}\n'),
    "no labels": (".jsonl", b'{"image": "a", "score": 1}\n'),
}
LONG_LABELS = {
    "header of 30,000 columns": (".csv", b"image," * 30_000),
    "10 MB of no class": (".json", b'{"a": "' + b"c" * MEGABYTES + b'"}'),
    "10 MB of no image": (".jsonl", b'{"image": [' + b"1," * (MEGABYTES // 2) + b'1], "labels": []}'),
    "10 MB of image": (".json", b'{"' + b"a" * MEGABYTES + b'": ["cat"]}'),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_label_file_is_one_line(tmp_path, one_line, name):
    suffix, content = BAD_LABELS[name]
    path = tmp_path / f"l{suffix}"
    path.write_bytes(content)
    assert str(path) in one_line(read_label_file, path, VOC12)


@pytest.mark.parametrize("name", LONG_LABELS)
def test_long_label_file_is_one_short_line(tmp_path, one_line, name):
    suffix, content = LONG_LABELS[name]
    path = tmp_path / f"l{suffix}"
    path.write_bytes(content)
    one_line(read_label_file, path, VOC12)


@pytest.mark.parametrize("suffix", LINES)
@pytest.mark.parametrize("form", ["bom", "crlf", "lone cr", "blank lines"])
def test_forms_of_text_that_say_the_same(tmp_path, suffix, form):
    text = LINES[suffix].format(ROWS[suffix])
    path = tmp_path / f"l{suffix}"
    ends = {"crlf": "\r\n", "lone cr": "\r", "blank lines": "\n\n"}
    path.write_bytes((("\ufeff" if form == "bom" else "") + text.replace("\n", ends.get(form, "\n"))).encode())
    assert read_label_file(path, VOC12) == {"a": (7,)}


def test_names_of_many_classes_take_seconds_not_hours(tmp_path, one_line):
    (tmp_path / "l.json").write_text(json.dumps({"a": [f"class {number}" for number in range(200_000)]}))
    from pipelines.datasets.folder import _classes_of

    assert len(label_names(tmp_path / "l.json")) == 200_000
    assert "1 to 254 classes, found 200000" in one_line(_classes_of, tmp_path / "l.json")


@pytest.mark.parametrize("read", [
    lambda path: read_label_file(path, VOC12),
    read_split,
    load_class_list,
    lambda path: read_instances(path, COCO14),
    lambda path: read_onehot_npy(path, VOC12),
], ids=["labels", "split", "classes", "coco", "npy"])  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipe_or_device_is_not_opened(tmp_path, one_line, read, kind):
    suffix = ".toml" if read is load_class_list else ".csv"
    path = tmp_path / f"l{suffix}"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert "no regular file" in one_line(read, path)


BAD_SPLITS = {
    "half a utf-16": "a\nb\n".encode("utf-16")[:-1],
    "one line of 10 MB": b"a" * MEGABYTES,
    "null": b"a\0b\n",
    "id and flag, as in VOC's Main": b"2007_000032  1\n2007_000033 -1\n2007_000032  1\n",
    "vertical tab": b"a\x0bb\n",
}


@pytest.mark.parametrize("name", BAD_SPLITS)
def test_bad_split_is_one_line(tmp_path, one_line, name):
    (tmp_path / "s.txt").write_bytes(BAD_SPLITS[name])
    assert "s.txt" in one_line(read_split, tmp_path / "s.txt")


def test_lone_carriage_returns_end_lines_of_a_split(tmp_path):
    (tmp_path / "s.txt").write_bytes(b"\xef\xbb\xbfa\rb\r\nc")
    assert read_split(tmp_path / "s.txt") == ("a", "b", "c")


def test_a_path_with_a_null_character(one_line):
    assert "null" in one_line(read_split, Path("a\0b.txt"))


YAML = "classes: [{name: mug}]\n"
PAIRS = list(zip("abcdefgh", "bcdefghi", strict=True))
LAUGHS = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in PAIRS)
MERGES = "a: &a {x: 1}\n" + "".join(f"{b}: &{b}\n  <<: [{', '.join([f'*{a}'] * 9)}]\n" for a, b in PAIRS)
BAD_CLASSES = {
    "billion laughs": (".yaml", LAUGHS + YAML),
    "billion merges": (".yaml", MERGES + YAML),
    "alias of itself": (".yaml", "classes: &c [*c]\n"),
    "doubled key": (".yaml", "template: 'a {}'\ntemplate: 'b {}'\n" + YAML),
    "doubled key within": (".yaml", "classes: [{name: mug, name: cup}]\n"),
    "integer of words": (".yaml", "classes: [{name: !!int mug}]\n"),
    "time of words": (".yaml", "classes: [{name: !!timestamp mug}]\n"),
    "a day that is none": (".yaml", "classes: [{name: 2020-99-99}]\n"),
    "truth of words": (".yaml", "classes: [{name: !!bool mug}]\n"),
    "two documents": (".yaml", YAML + "---\n" + YAML),
    "deep yaml": (".yaml", "classes: " + "[" * 5_000),
    "null byte yaml": (".yaml", YAML + "\0"),
    "yes as a name": (".yaml", "classes: [{name: yes}]\n"),
    "deep toml": (".toml", "classes = " + "[" * 100_000),
    "long number": (".toml", "classes = " + "9" * 5_000),
    "doubled toml key": (".toml", "template = 'a {}'\ntemplate = 'b {}'\n[[classes]]\nname = 'mug'\n"),
    "alias of another class": (".toml", "[[classes]]\nname = 'mug'\naliases = ['cup']\n[[classes]]\nname = 'cup'\n"),
    "bidi name": (".toml", "[[classes]]\nname = 'a\u202eb'\n"),
    "name of two lines": (".toml", '[[classes]]\nname = "a\\nb"\n'),
    "template of ten megabytes": (".toml", "template = '" + "{" * MEGABYTES + "'\n[[classes]]\nname = 'mug'\n"),
    "100,000 aliases": (".toml", f"[[classes]]\nname = 'c'\naliases = {['c'] * 100_000}\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CLASSES)
def test_bad_class_list_is_one_line(tmp_path, one_line, name):
    suffix, text = BAD_CLASSES[name]
    path = tmp_path / f"c{suffix}"
    path.write_text(text, encoding="utf-8")
    assert str(path) in one_line(load_class_list, path)


def coco(**changes: object) -> str:
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    return json.dumps(content | changes)


BAD_COCO = {
    "doubled key": coco()[:-1] + ', "annotations": []}',
    "long number": '{"images": ' + "9" * 5000 + "}",
    "doubled key of an image": coco().replace('"id": 1, "file_name"', '"id": 1, "id": 2, "file_name"'),
    "images as an object": coco(images={"1": "a.jpg"}),
    "image as a number": coco(images=[1]),
    "id as a list": coco(images=[{"id": [1], "file_name": "a.jpg"}]),
    "no file name": coco(images=[{"id": 1, "file_name": None}]),
    "file name of 10 MB": coco(images=[{"id": 1, "file_name": "a" * MEGABYTES}]),
    "id of two lines": coco(images=[{"id": "a\nb", "file_name": "../../a.jpg"}]),
    "annotation of nothing": coco(annotations=[{"image_id": "x" * MEGABYTES, "category_id": 1}]),
    "annotation as text": coco(annotations="x"),
    "category of 10 MB": coco(categories=[{"id": 1, "name": "x" * MEGABYTES}], annotations=[{"image_id": 1, "category_id": 1}]),
    "captions": json.dumps({"images": [], "annotations": [{"caption": "a cat"}]}),
    "null": "null",
}


@pytest.mark.parametrize("name", BAD_COCO)
def test_bad_coco_is_one_line(tmp_path, one_line, name):
    path = tmp_path / "instances.json"
    path.write_text(BAD_COCO[name])
    assert str(path) in one_line(read_instances, path, COCO14)
