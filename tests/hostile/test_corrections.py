"""Files of corrections that lead out of their zip, expand, or lie about sizes."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.corrections import Source, corrections, cvat
from pipelines.datasets.classes import VOC12
from pipelines.errors import SsrError

LABELS = "background:0,0,0::\ncat:9,9,9::\n"
LINK = 0o120777 << 16


def png(width: int = 2, height: int = 2) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ones((height, width), np.uint8)).save(out, "PNG")
    return out.getvalue()


def zipped(path: Path, entries: list[tuple[str, bytes]], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [("labelmap.txt", LABELS.encode()), *entries]:
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = (mode if name != "labelmap.txt" else 0), zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def read(path: Path) -> list[Any]:
    found = list(corrections(Source(path, VOC12)))
    for _, outcome in found:
        if isinstance(outcome, SsrError):
            raise outcome
    return found


@pytest.mark.parametrize("name", [
    "../x.png", "/x.png", "SegmentationClass/../../x.png", "SegmentationClass\\x.png", "C:/x.png", "SegmentationClass//x.png",
    "./labelmap.png",
])  # fmt: skip
def test_entries_that_lead_out(tmp_path, one_line, guarded, name):
    root = guarded()
    assert "leads out of the zip" in one_line(read, zipped(root / "c.zip", [(name, png())]))
    guarded()


@pytest.mark.parametrize(
    "name", ["SegmentationClass/.x.png", "SegmentationClass/a\nb.png", "SegmentationClass/" + "n" * 300 + ".png"]
)
def test_names_that_are_no_ids(tmp_path, one_line, name):
    assert "image id" in one_line(read, zipped(tmp_path / "c.zip", [(name, png())]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_that_are_odd(tmp_path, one_line, monkeypatch):
    picture = ("SegmentationClass/x.png", png())
    assert "is a link" in one_line(read, zipped(tmp_path / "c.zip", [("SegmentationClass/x.png", b"/etc/passwd")], LINK))
    assert "occurs twice" in one_line(read, zipped(tmp_path / "c.zip", [picture, picture]))
    assert "broken zip" in one_line(read, _cut(zipped(tmp_path / "c.zip", [picture])))
    head = b"IHDR" + struct.pack(">IIBBBBB", 11_000, 11_000, 8, 0, 0, 0, 0)
    large = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    large += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert "expected at most 100000000 pixels" in one_line(
        read, zipped(tmp_path / "c.zip", [("SegmentationClass/x.png", large)])
    )
    monkeypatch.setattr(cvat, "MAX_PICTURE", 1 << 20)
    bomb = zipped(tmp_path / "c.zip", [("SegmentationClass/x.png", bytes(1 << 24))])
    assert bomb.stat().st_size < 1 << 16
    assert "found more" in one_line(read, bomb)


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-30])
    return path


XML = '<annotations><image id="0" name="{name}" width="{width}" height="3">{shape}</image></annotations>'
MASK = '<mask label="cat" rle="{rle}" left="{left}" top="0" width="2" height="2" z_order="0"/>'


@pytest.mark.parametrize(("text", "message"), [
    ("<!DOCTYPE a [<!ENTITY a 'cat'>]>" + XML.format(name="&a;", width=3, shape=""), "Forbidden"),
    ("<!DOCTYPE a SYSTEM 'http://127.0.0.1:9/x'>" + XML.format(name="a", width=3, shape=""), "Forbidden"),
    (XML.format(name="../a", width=3, shape=""), "image id"),
    (XML.format(name="a", width=10**9, shape=""), "expected the size of an image"),
    (XML.format(name="a", width="x", shape=""), "expected a whole number"),
    (XML.format(name="a", width=3, shape=MASK.format(rle="0, 4", left=2)), "expected a mask within"),
    (XML.format(name="a", width=3, shape=MASK.format(rle="0, 999999999", left=0)), "expected runs of 4 pixels"),
    (XML.format(name="a", width=3, shape=MASK.format(rle="5, -1", left=0)), "expected runs of 4 pixels"),
    (XML.format(name="a", width=3, shape='<polygon label="cat" points="1,nan;2,2;3,3"/>'), "expected a polygon"),
    (XML.format(name="a", width=3, shape='<polygon label="unicorn" points="1,1;2,2;3,3"/>'), "unknown class"),
    ("<annotations>" * 100_000, "broken XML"),
    ("<annotations><track/></annotations>", "a track of a video"),
])  # fmt: skip
def test_xml(tmp_path, one_line, text, message):
    (tmp_path / "c.xml").write_text(text)
    assert message in one_line(read, tmp_path / "c.xml")


def coco(segmentation: Any, **image: Any) -> Any:
    entry = {"id": 1, "file_name": "a.jpg", "width": 4, "height": 3} | image
    annotation = {"image_id": 1, "category_id": 1, "segmentation": segmentation}
    return {"images": [entry], "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]}


def task(**result: Any) -> Any:
    entry = {"type": "brushlabels", "original_width": 4, "original_height": 3, "value": {}} | result
    return [{"data": {"image": "a.jpg"}, "annotations": [{"result": [entry]}]}]


@pytest.mark.parametrize(("content", "message"), [
    (coco({"size": [3, 4], "counts": "0" * 5 + "\x7f"}), "expected packed run lengths"),
    (coco({"size": [3, 4], "counts": "oooooooooooooooo"}), "expected packed run lengths"),
    (coco({"size": [3, 4], "counts": [10**30]}), "expected runs of 12 pixels"),
    (coco({"size": [3, 4], "counts": [True] * 12}), "expected run lengths"),
    (coco({"size": [10**9, 10**9], "counts": "0"}), "expected run lengths of [3, 4]"),
    (coco([[0, 0, 1e400, 1, 2, 2]]), "expected a polygon"),
    (coco([[0, 0, 1, 1]]), "expected a polygon"),
    (coco("x"), "expected polygons or run lengths"),
    (coco([], width=10**9), "expected the size of an image"),
    (coco([], file_name=[1]), "expected the name of an image"),
    (coco([]) | {"categories": []}, "not among the categories"),
    (coco([]) | {"annotations": {}}, "annotations: expected a list"),
    (coco([]) | {"categories": [{"id": [], "name": "cat"}]}, "expected an id"),
    (task(value={"format": "rle", "rle": [0, 0, 0, 48, 57], "brushlabels": ["cat"]}), "cut off"),
    (task(value={"format": "rle", "rle": [255] * 99, "brushlabels": ["cat"]}), "expected a brush of 48 bytes"),
    (task(value={"format": "rle", "rle": [10**9], "brushlabels": ["cat"]}), "expected a brush as bytes"),
    (task(value={"format": "rle", "rle": [], "brushlabels": ["cat", "dog"]}), "expected one class a mask"),
    (task(original_width=10**8), "expected the size of an image"),
    (task(original_width="4"), "expected the size of an image"),
    ([{"image": "a.jpg", "brush": []}], "expected 'data'"),
    ([[]], "expected an object"),
])  # fmt: skip
def test_json(tmp_path, one_line, content, message):
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert message in one_line(read, tmp_path / "c.json")


@pytest.mark.parametrize("text", ['{"images": 1, "images": 2}', "[" * 100_000, "\ufeff\ufeff{}", "9" * 5000])
def test_json_that_is_broken(tmp_path, one_line, text):
    (tmp_path / "c.json").write_text(text, encoding="utf-8")
    one_line(read, tmp_path / "c.json")


def test_polygons_far_outside_are_cut_off(tmp_path):
    """Coordinates reach C code, which would fill memory with them."""
    (tmp_path / "c.json").write_text(json.dumps(coco([[-1e300, -1e9, 1e300, -5, 1e18, 1e18, -7, 1e250]])))
    ((_, found),) = read(tmp_path / "c.json")
    assert (found.label_map == VOC12.index("cat") + 1).all()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing"])
def test_what_is_no_file(tmp_path, one_line, kind):
    path = tmp_path / "c"
    makers = {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}
    makers.get(kind, lambda: None)()
    assert "cannot read" in one_line(read, path)
