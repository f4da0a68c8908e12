from __future__ import annotations

import io
import re
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipelines.figures.page import PageRow, html_page

NASTY = "<script>alert('1')</script>\"&$title"
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Collects tags, attributes and text; checks that tags nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def values(self, tag: str, attribute: str) -> list[str | None]:
        return [attrs[attribute] for name, attrs in self.tags if name == tag and attribute in attrs]


def picture(kind: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "L")])
def test_pictures_are_inside_as_jpeg(kind: str, mode: str) -> None:
    data = picture(kind, mode)
    reader = Reader(html_page("t", [PageRow("a", ("cat",), data)], {}))
    (source,) = reader.values("img", "src")
    head, _, body = str(source).partition(",")
    assert head == "data:image/jpeg;base64"
    decoded = b64decode(body, validate=True)
    with Image.open(io.BytesIO(decoded)) as image:
        assert (image.format, image.size) == ("JPEG", (30, 20))
    if kind == "JPEG":
        assert decoded == data
    assert (reader.values("img", "width"), reader.values("img", "height")) == (["30"], ["20"])


def test_everything_is_shown_and_escaped() -> None:
    row = PageRow(NASTY, (NASTY, "dog"), picture("JPEG"), note=NASTY)
    page = html_page(NASTY, [row], {NASTY: NASTY}, colors={"dog": (1, 2, 3)})
    reader = Reader(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.text.count(NASTY) == 7  # title, headline, fact and its name, id, label, note
    assert reader.values("article", "id") == [NASTY]
    assert reader.values("img", "alt") == [f"{NASTY}: {NASTY}, dog"]
    assert reader.values("i", "style") == ["background:rgb(1,2,3)"]


def test_rows_keep_their_order_and_are_counted() -> None:
    reader = Reader(html_page("t", (PageRow(name, (), picture("JPEG")) for name in "cab"), {"split": "train"}))
    assert reader.values("article", "id") == ["c", "a", "b"]
    assert "3 images" in reader.text
    assert "1 image" in Reader(html_page("t", [PageRow("a", (), picture("JPEG"))], {})).text


def test_needs_nothing_from_outside() -> None:
    page = html_page("t", [PageRow("a", ("cat",), picture("PNG"))], {"split": "train"})
    markup = re.sub(r"base64,[\w+/=]+", "", page)
    assert not re.search(r"https?:|//|@import|url\(|<link|<script|\son\w+=", markup)
    assert "prefers-color-scheme: dark" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"no picture"])
def test_refuses_other_pictures(data: bytes) -> None:
    with pytest.raises(ValueError, match="picture of a7 is neither JPEG nor PNG"):
        html_page("t", [PageRow("a7", (), data)], {})
