"""VOC annotations that expand, reach out or nest."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipelines.datasets.classes import VOC12
from pipelines.datasets.voc import labels_from_xml

BODY = "<annotation><object><name>{}</name></object></annotation>"
LAUGHS = "<!DOCTYPE a [<!ENTITY a 'dog'>{}]>".format(
    "".join(f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
)
BAD = {
    # name: (bytes, what the line says)
    "billion laughs": (LAUGHS + BODY.format("&i;"), "EntitiesForbidden"),
    "quadratic blow-up": (f"<!DOCTYPE a [<!ENTITY a '{'d' * 100_000}'>]>" + BODY.format("&a;" * 50_000), "EntitiesForbidden"),
    "external entity": ("<!DOCTYPE a [<!ENTITY a SYSTEM 'bait.txt'>]>" + BODY.format("&a;"), "Forbidden"),
    "external entity by address": ("<!DOCTYPE a [<!ENTITY a SYSTEM 'http://127.0.0.1:9/'>]>" + BODY.format("&a;"), "Forbidden"),
    "parameter entity": ("<!DOCTYPE a [<!ENTITY % a SYSTEM 'bait.txt'> %a;]>" + BODY.format("dog"), "Forbidden"),
    "unparsed entity": ("<!DOCTYPE a [<!ENTITY a SYSTEM 'b' NDATA c>]>" + BODY.format("dog"), "Forbidden"),
    "unknown entity": (BODY.format("&dog;"), "broken XML"),
    "empty": ("", "broken XML"),
    "cut": (BODY.format("dog")[:-5], "broken XML"),
    "two roots": (BODY.format("dog") * 2, "broken XML"),
    "null byte": (BODY.format("dog\0"), "broken XML"),
    "unknown encoding": ("<?xml version='1.0' encoding='klingon'?>" + BODY.format("dog"), "broken XML"),
    "encoding of many bytes": ("<?xml version='1.0' encoding='utf-7'?>" + BODY.format("dog"), "broken XML"),
    "bytes of another encoding": (b"<annotation>\xff\xfe</annotation>", "broken XML"),
    "html": ("<html><body>404</body></html>", "expected VOC's <annotation>, found <html>"),
    "namespace": ("<annotation xmlns='x'/>", "expected VOC's <annotation>"),
    "long tag": (f"<{'a' * 1_000_000}/>", "expected VOC's <annotation>"),
    "long class": (BODY.format("d" * 1_000_000), "unknown class"),
    "class of two lines": (BODY.format("do\ng"), "unknown class"),
    "class with an escape sequence": (BODY.format("dog&#x9b;2J"), "unknown class"),
    "deep, without end": ("<annotation>" * 200_000, "broken XML"),
}


def write(folder: Path, content: str | bytes) -> Path:
    (folder / "bait.txt").write_text("cat")
    (folder / "a.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_annotation_is_one_line_at_once(tmp_path, one_line, name):
    content, message = BAD[name]
    started = time.monotonic()
    said = one_line(labels_from_xml, write(tmp_path, content), VOC12)
    assert message in said
    assert said.startswith(str(tmp_path / "a.xml"))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("content", [
    "<annotation>" + "<part>" * 100_000 + "</part>" * 100_000 + "<object><name>dog</name></object></annotation>",
    "<annotation><object>" + "<part><name>cat</name></part>" * 50_000 + "<name> dog\n</name></object></annotation>",
    "<!DOCTYPE annotation SYSTEM 'http://127.0.0.1:9/voc.dtd'>" + BODY.format("dog"),
    "<?xml version='1.0' encoding='latin-1'?><!-- \xe9 -->" + BODY.format("dog"),
    "\ufeff" + BODY.format("<![CDATA[dog]]>").replace("><", ">\r\n<"),
], ids=["100,000 levels", "50,000 parts", "a doctype that is not fetched", "latin-1", "bom, crlf and cdata"])  # fmt: skip
def test_odd_annotations_are_read(tmp_path, content):
    encoded = content.encode("latin-1" if "latin-1" in content else "utf-8")
    assert labels_from_xml(write(tmp_path, encoded), VOC12) == {"a": (VOC12.index("dog"),)}


def test_utf_16_is_read(tmp_path):
    text = "<?xml version='1.0' encoding='utf-16'?>" + BODY.format("dog")
    assert labels_from_xml(write(tmp_path, text.encode("utf-16")), VOC12) == {"a": (VOC12.index("dog"),)}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_what_is_no_file(tmp_path, one_line, kind):
    path = tmp_path / "a.xml"
    makers = {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}
    makers.get(kind, lambda: path.symlink_to(path))()
    assert "a.xml" in one_line(labels_from_xml, tmp_path, VOC12)


def test_a_bomb_through_the_command_line(refused, tiny_voc, tmp_path):
    content, message = BAD["billion laughs"]
    write(tmp_path, content)
    assert message in refused("labels", tmp_path, tmp_path / "out.csv", "--from", "xml")
    assert not (tmp_path / "out.csv").exists()
