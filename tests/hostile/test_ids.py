"""Image ids that would leave their folder or a terminal line, through every door that ids come in by."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.classes import COCO14, VOC12
from pipelines.datasets.coco_json import read_instances
from pipelines.datasets.folder import load_photos
from pipelines.datasets.label_files import read_label_file
from pipelines.datasets.mask_labels import labels_from_masks
from pipelines.datasets.onehot import read_onehot_npy
from pipelines.datasets.splits import read_split, split_file
from pipelines.datasets.voc import labels_from_xml

IDS = {
    "parent": "..",
    "out of the folder": "../bait",
    "out of it later": "a/../../bait",
    "absolute": "/etc/passwd",
    "below": "a/b",
    "backslash": "..\\bait",
    "drive": "C:\\bait",
    "hidden": ".bait",
    "newline": "a\nb",
    "carriage return": "a\rb",
    "null": "bait\x00.png",
    "escape sequence": "\x1b[2Ja",
    "bell": "a\x07",
    "delete": "a\x7f",
    "bidi override": "a\u202egpj",
    "bidi isolate": "a\u2066b",
    "zero width": "a\u200bb",
    "byte order mark inside": "a\ufeffb",
    "line separator": "a\u2028b",
    "next line": "a\x85b",
    "tag character": "a\U000e0041",
    "10,000 characters": "a" * 10_000,
    "too many bytes": "図" * 67,
    "slash after a dot": "a./b",
    "only dots": "...",
}


def csv_file(folder: Path, key: str) -> Path:
    text = io.StringIO()
    csv.writer(text).writerows([["image", "labels"], ["good", "cat"], [key, "cat"]])
    (folder / "l.csv").write_bytes(text.getvalue().encode())
    return folder / "l.csv"


def json_file(folder: Path, key: str) -> Path:
    (folder / "l.json").write_text(json.dumps({"good": ["cat"], key: ["cat"]}))
    return folder / "l.json"


def jsonl_file(folder: Path, key: str) -> Path:
    rows = [{"image": one, "labels": ["cat"]} for one in ("good", key)]
    (folder / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "l.jsonl"


def split_list(folder: Path, key: str) -> Path:
    (folder / "s.txt").write_bytes(f"good\n{key}\n".encode())
    return folder / "s.txt"


def coco_file(folder: Path, key: str, suffix: str = ".jpg") -> Path:
    images = [{"id": 1, "file_name": "good.jpg"}, {"id": 2, "file_name": key + suffix}]
    (folder / "i.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return folder / "i.json"


def npy_file(folder: Path, key: str) -> Path:
    row = np.zeros(20, np.float32)
    np.save(folder / "n.npy", np.array({"good": row, key: row}, dtype=object), allow_pickle=True)
    return folder / "n.npy"


def files_of(suffix: str, content: bytes) -> Callable[[Path, str], Path]:
    def write(folder: Path, key: str) -> Path:
        for name in ("good", key):
            (folder / f"{name}{suffix}").write_bytes(content)
        return folder

    return write


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


IN_A_FILE = {
    "csv": (csv_file, lambda path: read_label_file(path, VOC12)),
    "json": (json_file, lambda path: read_label_file(path, VOC12)),
    "jsonl": (jsonl_file, lambda path: read_label_file(path, VOC12)),
    "coco": (coco_file, lambda path: read_instances(path, COCO14)),
    "coco without suffix": (lambda folder, key: coco_file(folder, key, ""), lambda path: read_instances(path, COCO14)),
    "npy": (npy_file, lambda path: read_onehot_npy(path, VOC12)),
    "split": (split_list, read_split),
}
AS_A_FILE_NAME = {
    "xml": (files_of(".xml", b"<annotation/>"), lambda path: labels_from_xml(path, VOC12)),
    "masks": (files_of(".png", png()), lambda path: labels_from_masks(path, VOC12)),
    "photos": (files_of(".png", png()), lambda path: load_photos(path, ("cat",))),
}
A_PATH = {"absolute", "below", "drive", "slash after a dot", "out of the folder", "out of it later", "backslash"}
"""With a suffix, a path to a file: its name is the id. From the folder of the annotations, ``..`` leads to the data set."""
TWO_IDS = {"newline", "carriage return"}  # to a split they are the end of a line
NO_FILE_NAME = {name for name, key in IDS.items() if "/" in key or "\0" in key or len(key.encode()) > 240}
PASSED_OVER = {"parent", "hidden", "backslash", "only dots"}  # hidden files are no photos


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("door", IN_A_FILE)
def test_an_id_in_a_file(guarded, one_line, door, name):
    root = guarded()
    if door == "split" and name in TWO_IDS:
        assert len(read_split(split_list(root, IDS[name]))) == 3
        return
    write, read = IN_A_FILE[door]
    if door == "coco" and name in A_PATH:
        assert len(found := read(write(root, IDS[name])).images) == 2
        assert not any(set("/\\") & set(image_id) for image_id in found)
        guarded()
        return
    assert "id" in one_line(read, write(root, IDS[name]))
    guarded()


@pytest.mark.parametrize("name", [name for name in IDS if name not in NO_FILE_NAME])
@pytest.mark.parametrize("door", AS_A_FILE_NAME)
def test_an_id_that_is_a_file_name(guarded, one_line, door, name):
    root = guarded()
    write, read = AS_A_FILE_NAME[door]
    write(root, IDS[name])
    if door == "photos" and name in PASSED_OVER:
        assert [sample.image_id for sample in read(root).samples] == ["good"]
    else:
        assert "image id" in one_line(read, root)
    guarded()


@pytest.mark.parametrize("door", AS_A_FILE_NAME)
def test_a_file_name_that_is_no_text(guarded, one_line, door):
    root = guarded()
    write, read = AS_A_FILE_NAME[door]
    write(root, "a\udcffb")  # the byte 0xff
    assert "image id" in one_line(read, root)


@pytest.mark.parametrize("suffix", [".j\npg", ".jpg\x1b[2J", ". jpg", ".\u202egpj", "./etc", ".j\\x"])
def test_what_follows_the_last_dot_of_a_coco_name(tmp_path, one_line, suffix):
    assert "image 2" in one_line(read_instances, coco_file(tmp_path, "a", suffix), COCO14)


@pytest.mark.parametrize("name", IDS)
def test_a_split_that_is_a_name(one_line, name):
    assert "--split" in one_line(split_file, IDS[name])


def test_two_photos_of_one_name_are_one_line(tmp_path, one_line):
    for suffix in (".png", ".jpg"):
        (tmp_path / f"a\nb{suffix}").write_bytes(png())
    one_line(load_photos, tmp_path, ("cat",))


@pytest.mark.parametrize("name", ["out of the folder", "absolute", "newline", "escape sequence", "10,000 characters"])
@pytest.mark.parametrize("door", ["csv", "json", "jsonl", "split", "coco", "npy", "xml", "masks", "photos"])
def test_nothing_is_read_or_written_outside(guarded, refused, tiny_voc, door, name, models, write_model):
    if (door in AS_A_FILE_NAME and name in NO_FILE_NAME) or (name in {"split": TWO_IDS, "coco": A_PATH}.get(door, ())):
        pytest.skip("no such name")
    root = guarded()
    (IN_A_FILE | AS_A_FILE_NAME)[door][0](root, IDS[name])
    work, config = root / "work", ("--config", tiny_voc.config)
    match door:
        case "csv" | "json" | "jsonl":
            refused("superpixels", "folder", "--root", root, "--labels", root / f"l.{door}", *config, "--work", work)
        case "split":
            refused("superpixels", *config, "--split", root / "s.txt", "--work", work)
        case "photos":
            model, clip = write_model(root / "m.safetensors"), ("--clip-model", "tiny-quickgelu")
            words = ("--images", root, "--model", model, "--output", root / "out", "--clip-pretrained", models.visual)
            refused("predict", *words, *clip, "--device", "cpu")
            assert not (root / "out").exists()
        case _:
            source = {"coco": root / "i.json", "npy": root / "n.npy"}.get(door, root)
            refused("labels", source, root / "out.csv", "--from", door, "--classes", "coco14" if door == "coco" else "voc12")
            assert not (root / "out.csv").exists()
    assert not work.exists() or not list(work.rglob("*.h5"))
    guarded()
