"""One HTML page of doubtful labels: tick what is wrong, and the browser writes a corrected label file.

It holds pictures, labels and its one script, and reaches nothing outside: it can be mailed, and opened from disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pipelines.figures.page_shell import jpeg_image
from pipelines.figures.scripted_page import scripted_page


@dataclass(frozen=True)
class Doubt:
    """One label that may be wrong, or one that may be missing.

    Attributes:
        image_id: The photo.
        name: The class.
        missing: It is no label of the photo and may be one; otherwise it is one and may be wrong.
        labels: Names of the photo's labels.
        picture: Photo and maps as JPEG.
        size: ``(width, height)`` of the picture.
        note: One line of numbers.
    """

    image_id: str
    name: str
    missing: bool
    labels: tuple[str, ...]
    picture: bytes
    size: tuple[int, int]
    note: str


def check_page(
    title: str, doubts: Iterable[Doubt], labels: Iterable[tuple[str, Sequence[str]]], summary: Mapping[str, str]
) -> str:
    """Build the page.

    Args:
        title: Head of the page.
        doubts: Worst first.
        labels: Every photo of the label file that is to be corrected, with the names of its labels.
        summary: Facts for the head, name -> value.

    Returns:
        HTML. Every text is escaped; the script is the one that the page's policy allows, by its hash.
    """
    rows = [[image_id, list(names)] for image_id, names in labels]
    return scripted_page(title, summary, _CONTROLS, map(_article, doubts), rows, SCRIPT, _MORE_STYLE)


def _article(doubt: Doubt) -> str:
    chips = "".join(f"<li>{escape(name)}</li>" for name in doubt.labels) or "<li>no label</li>"
    change = "add" if doubt.missing else "remove"
    value = escape(json.dumps([doubt.image_id, doubt.name, change], ensure_ascii=False))
    return (
        f'<article><header><label><input type="checkbox" value="{value}"> {change} <b>{escape(doubt.name)}</b></label>'
        f"<h2>{escape(doubt.image_id)}</h2><ul>{chips}</ul><p>{escape(doubt.note)}</p></header><div>"
        f"{jpeg_image(doubt.picture, doubt.size, doubt.image_id)}</div></article>"
    )


SCRIPT = """
const rows = JSON.parse(document.getElementById("data").textContent);
const boxes = () => [...document.querySelectorAll("input")].filter((box) => box.checked);
const cell = (text) => /[",\\n\\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
function corrected() {
  const changes = new Map();
  for (const box of boxes()) {
    const [image, name, change] = JSON.parse(box.value);
    if (!changes.has(image)) changes.set(image, []);
    changes.get(image).push([name, change]);
  }
  const lines = ["image,labels"];
  for (const [image, names] of rows) {
    const present = new Set(names);
    for (const [name, change] of changes.get(image) || []) change === "add" ? present.add(name) : present.delete(name);
    lines.push(cell(image) + "," + cell([...present].join(";")));
  }
  return lines.join("\\n") + "\\n";
}
function count() {
  document.getElementById("ticked").textContent = String(boxes().length);
}
function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([corrected()], { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
}
document.addEventListener("change", count);
document.getElementById("save").addEventListener("click", save);
count();
""".strip()

_MORE_STYLE = """
article label { font-size: 1rem; cursor: pointer; }
input { width: 1.1rem; height: 1.1rem; vertical-align: -.15rem; }
button { font: inherit; padding: .35rem .9rem; border-radius: 8px; border: 1px solid var(--line); cursor: pointer; }
"""

_CONTROLS = """<dl><div><dt>ticked</dt><dd id="ticked"></dd></div></dl>
<button id="save" type="button">Save the corrected label file</button>"""
